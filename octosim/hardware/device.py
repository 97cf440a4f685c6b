"""Hardware profiles: what is known about a device, each number with its source.

A profile is one TOML file (`hwprofiles/<device>.toml`) validated into a frozen `Device`.  Every number is a table
`{ value, kind, source }`; the unit is the end of its key (`clock_ghz`, `overhead_us`).  What nobody knows is left out.
`host()` reads the same description from the machine it runs on.
"""

from __future__ import annotations

import functools
import importlib.resources
import os
import platform
import re
import tomllib
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from octosim import extensions
from octosim.errors import ArgumentError, OctosimError, suggest
from octosim.hardware import detect as host_reader
from octosim.hardware import efficiency
from octosim.hardware.efficiency import CpuFactors
from octosim.hardware.figures import Count, Delay, Figure, Kind, Ratio
from octosim.hardware.rates import Rates
from octosim.hardware.runtime import Runtime, load_runtime, runtime_names
from octosim.numerics import ACCUMULATORS
from octosim.schema import Frozen, Positive, Text, problems_text
from octosim.textfile import TOML_BYTES, parse_toml, read_text

Dtype = Literal["int8", "float16", "float32"]
DTYPES: tuple[Dtype, ...] = ("int8", "float16", "float32")
"""The arithmetic types of a compute engine, narrowest first."""

PEAK_TOLERANCE = 0.03
"""units x clock x MACs per clock may differ from a published peak by this fraction (measured peaks, rounded clocks)."""

class PerDtype(Frozen):
    """A figure for each arithmetic type that the engine has; an absent type means that it has none."""

    int8: Figure | None = None
    float16: Figure | None = None
    float32: Figure | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> PerDtype:
        if not self.given():
            raise ValueError("needs at least one of int8, float16, float32")
        return self

    def given(self) -> dict[Dtype, float]:
        """The values present, by dtype."""
        found = {dtype: getattr(self, dtype) for dtype in DTYPES}
        return {dtype: figure.value for dtype, figure in found.items() if figure is not None}


class RatioPerDtype(PerDtype):
    int8: Ratio | None = None
    float16: Ratio | None = None
    float32: Ratio | None = None


def _preset(name: str) -> str:
    if name not in ACCUMULATORS:
        raise ValueError(f"is {name!r}, expected one of {', '.join(ACCUMULATORS)}")
    return name


class Name(Frozen):
    """One name, with where it comes from; kind as in Figure."""

    value: Text
    kind: Kind
    source: Text


class AccumulatorName(Name):
    """A preset of octosim.numerics.ACCUMULATORS."""

    value: Annotated[str, AfterValidator(_preset), Field(json_schema_extra={"enum": list(ACCUMULATORS)})]


class RoundingName(Name):
    """How a real number becomes a code."""

    value: Literal["half-even", "half-away", "half-up", "floor", "toward-zero", "stochastic", "pseudo-stochastic"]


class RequantizationName(Name):
    """How an accumulator becomes an int8 code of another scale."""

    value: Literal["gemmlowp", "single-rounding", "power-of-two", "float-scale"]


class Numerics(Frozen):
    """The INT8 arithmetic, of the engine that runs INT8 products; an absent part is not published.

    The accumulator belongs to the hardware.  On a CPU or GPU software chooses rounding and requantization: the source
    then names that software.
    """

    accumulator: AccumulatorName | None = None
    rounding: RoundingName | None = None
    requantization: RequantizationName | None = None


class Tile(Frozen):
    """The block of a product M x K x N that a unit takes at once; K in bytes, so that every dtype has one."""

    m: Count
    n: Count
    k_bytes: Count


class Array(Frozen):
    """A weight-stationary systolic array: the weights' rows run along the reduction, its columns along the outputs."""

    rows: Count
    columns: Count


class Engine(Frozen):
    """One kind of compute unit.

    macs_per_clock: multiply-accumulates per clock of ONE unit; peak = units x clock x macs_per_clock.
    gemm_efficiency: achieved / peak of matrix products, for dtypes of macs_per_clock; where absent the cost model
    assumes octosim.cost.ASSUMED_EFFICIENCY and says so.
    elementwise_per_clock: elements per clock of one unit in a pass over memory; absent: only memory is counted.
    accumulator: preset name of octosim.numerics where one fits, else words.
    trains: whether it can run the passes dX, dW and update, and not only forward.
    core: of a CPU, the core's name ("Cortex-A72"); absent: what the profile's title says.
    multiprocessors: of a GPU; a product takes whole waves of output tiles over them.
    dataflow: the chip holds all layers and streams images through: throughput is known, the latency of one image is not.
    tf32_per_clock: as macs_per_clock, of float32 operands cut to ten bits of mantissa; some runtimes take that for float32.
    tile: absent: no loss where a product is not a multiple of it.
    array: of a systolic array, in place of tile: filling and draining count (octosim.cost.systolic_cycles).
    """

    name: Text
    accumulator: Text
    trains: bool
    units: Count
    clock_ghz: Figure
    macs_per_clock: PerDtype
    gemm_efficiency: RatioPerDtype | None = None
    core: Text | None = None
    multiprocessors: Count | None = None
    dataflow: bool = False
    tile: Tile | None = None
    array: Array | None = None
    elementwise_per_clock: Figure | None = None
    tf32_per_clock: Figure | None = None
    published_peak_gmac_s: PerDtype | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Engine:
        rates = self.macs_per_clock.given()
        for dtype in self.gemm_efficiency.given() if self.gemm_efficiency else {}:
            if dtype not in rates:
                raise ValueError(f"has gemm_efficiency.{dtype} but no macs_per_clock.{dtype}")
        if self.array and self.tile:
            raise ValueError("has both a tile and an array, expected one of them")
        hint = "" if self.accumulator in ACCUMULATORS else suggest(self.accumulator, ACCUMULATORS)
        if "did you mean" in hint:  # words that are near none stay words
            raise ValueError(f"has the accumulator {self.accumulator!r}{hint}")
        published = self.published_peak_gmac_s.given() if self.published_peak_gmac_s else {}
        for dtype, gmac_s in published.items():
            if dtype not in rates:
                raise ValueError(f"has published_peak_gmac_s.{dtype} but no macs_per_clock.{dtype}")
            derived = self.peak_mac_s(dtype) / 1e9
            if abs(derived - gmac_s) > PEAK_TOLERANCE * gmac_s:
                raise ValueError(
                    f"units x clock_ghz x macs_per_clock.{dtype} is {derived:.4g} GMAC/s, which is not "
                    f"the published_peak_gmac_s.{dtype} of {gmac_s:.4g}"
                )
        return self

    @property
    def kind(self) -> Literal["cpu", "gpu", "npu"]:
        """What kind of unit it is: runtimes drive some kinds."""
        if self.multiprocessors:
            return "gpu"
        return "cpu" if self.core or self.accumulator in (*ACCUMULATORS, "float16", "float32") and not self.tile else "npu"

    def per_clock(self, dtype: Dtype, tf32: bool = False) -> float:
        """Multiply-accumulates a clock of one unit, 0 where the engine does not have the dtype; tf32: taken for float32."""
        own = self.macs_per_clock.given().get(dtype, 0.0)
        return max(own, self.tf32_per_clock.value) if tf32 and dtype == "float32" and self.tf32_per_clock else own

    def peak_mac_s(self, dtype: Dtype, tf32: bool = False) -> float:
        """Peak MAC/s of all units together; 0 where the engine does not have the dtype."""
        return self.units.value * self.clock_ghz.value * 1e9 * self.per_clock(dtype, tf32)

    def efficiency(self, dtype: Dtype) -> float | None:
        """Achieved / peak of matrix products, None where the profile does not state it; of TF32 that of float16."""
        known = self.gemm_efficiency.given() if self.gemm_efficiency else {}
        return known.get("float16" if dtype == "float32" and self.tf32_per_clock and dtype not in known else dtype)

    def rate_mac_s(self, dtype: Dtype, assumed: float = 0.0, tf32: bool = False) -> float:
        """Achievable MAC/s: peak x efficiency, `assumed` where it is not stated; 0 where the engine lacks the dtype."""
        return self.peak_mac_s(dtype, tf32) * (self.efficiency(dtype) or assumed)

    def elements_s(self) -> float:
        """Elements/s of elementwise work, infinite where it is not known (memory is then the only limit)."""
        if self.elementwise_per_clock is None:
            return float("inf")
        return self.units.value * self.clock_ghz.value * 1e9 * self.elementwise_per_clock.value


class Memory(Frozen):
    """Main memory.  Bandwidths count every byte moved, read or written (a copy of n bytes moves 2n).

    bandwidth_sustained_gb_s is what the cost model uses (absent: traffic costs no time, and the output says so);
    bandwidth_peak_gb_s is for people to compare.
    weights_gib is of another memory, for the weights of an inference (flash, an accelerator's kernel memory): capacity_gib is
    of all else then, and of all in training.
    link_gb_s is of a chip without memory of its own, whose caches hold all else: weights that they cannot hold come over this
    link in every inference.
    """

    capacity_gib: Figure | None = None
    weights_gib: Figure | None = None
    bandwidth_peak_gb_s: Figure | None = None
    bandwidth_sustained_gb_s: Figure | None = None
    link_gb_s: Figure | None = None

    @model_validator(mode="after")
    def _below_its_peak(self) -> Memory:
        sustained, peak = self.bandwidth_sustained_gb_s, self.bandwidth_peak_gb_s
        if sustained and peak and sustained.value > peak.value:
            raise ValueError(
                f"has a bandwidth_sustained_gb_s of {sustained.value:g}, above its bandwidth_peak_gb_s of {peak.value:g}"
            )
        return self


BARE_GIB = 1 / 16
"""Below it no operating system runs, so no Python: a step is the C program that `octosim export --to c` writes."""


class Cache(Frozen):
    """One level of cache or local buffer; size_kib is the size of one instance, shared_by says how many share it."""

    name: Text
    shared_by: Text
    size_kib: Figure


class Power(Frozen):
    """Power of the whole board or module, in W; an absent figure means that nobody published one.

    budget: whether busy_w is a module's budget and no measurement of the board: a board draws more or less.
    """

    idle_w: Figure | None = None
    busy_w: Figure | None = None
    budget: bool = False

    @model_validator(mode="after")
    def _busier_than_idle(self) -> Power:
        if self.idle_w and self.busy_w and self.idle_w.value > self.busy_w.value:
            raise ValueError(f"has an idle_w of {self.idle_w.value:g}, above its busy_w of {self.busy_w.value:g}")
        return self


class Energy(Frozen):
    """Energy of one multiply-accumulate, and of one byte moved to or from main memory, in pJ.

    Power / rate of the chip, module or board that the source names, so static power is in it.
    """

    pj_per_mac: PerDtype | None = None
    pj_per_byte: Figure | None = None


def _mode_key(name: str) -> str:
    return name.casefold().removeprefix("mode_")


class Mode(Frozen):
    """A power mode: clocks (GHz) and units by engine where they differ from the profile's, and the budget of the module.

    units: at most the engine's.

    bandwidth_source: who measured the bandwidth; absent: it is the profile's in proportion to the memory clock.
    """

    name: Text
    source: Text
    clock_ghz: dict[str, Positive] = {}  # noqa: RUF012
    units: dict[str, Annotated[int, Field(ge=1)]] = {}  # noqa: RUF012
    power_w: Positive | None = None
    bandwidth_gb_s: Positive | None = None
    bandwidth_source: Text | None = None

    @property
    def key(self) -> str:
        """The name as `--mode` looks it up."""
        return _mode_key(self.name)


class Training(Frozen):
    """Whether anybody can train on the device.

    hypothetical: the units would allow it, no documented software does.  forward-only: they run inference alone.
    """

    status: Literal["supported", "hypothetical", "forward-only"]
    note: Text


class Device(Frozen):
    """A device as the cost model sees it.  Properties without `_gb_s`, `_us` ... are in SI units.

    machine: texts of which a machine that is this device names itself with one: the device tree's model or compatible, or the
        CPU's model name.  Only where the engines are the CPU cores that octosim itself runs on.
    calibration: efficiency factors of its CPU cores by arithmetic; they replace those that octosim ships.
    cores_of: the profile whose fitted factors its CPU cores share, by name or alias: the same chip at another clock.
    runtime: the inference software that is common on it, as load_runtime takes it; absent: by the kind of its first engine.
    one_image: whether its software takes networks of one image alone: a batch is one inference after the other.
    rates: measured times of octosim's own kernels (`octosim profiles calibrate`); they replace the whole model.
    call_scale: of an accelerator, how many times as long its CPU takes to launch a call as AGX Xavier's in MAXN, whose time
        runtimes state as `call_us`; absent: once.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: Text
    aliases: Annotated[tuple[str, ...], Field(strict=False)] = ()
    machine: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    note: str = ""
    runtime: Text | None = None
    cores_of: Text | None = None
    one_image: bool = False
    training: Training
    overhead_us: Delay
    call_scale: Figure | None = None
    engines: Annotated[tuple[Engine, ...], Field(strict=False)]
    numerics: Numerics = Field(default_factory=Numerics)
    memory: Memory = Field(default_factory=Memory)
    caches: Annotated[tuple[Cache, ...], Field(strict=False)] = ()
    power: Power = Field(default_factory=Power)
    modes: Annotated[tuple[Mode, ...], Field(strict=False)] = ()
    energy: Energy = Field(default_factory=Energy)
    calibration: dict[Literal["float32", "float16", "smlal", "sdot"], CpuFactors] = {}  # noqa: RUF012
    rates: Rates | None = None

    @field_validator("engines")
    @classmethod
    def _distinct(cls, engines: tuple[Engine, ...]) -> tuple[Engine, ...]:
        if not engines:  # not min_length: pydantic would report a list of one faulty engine as too short as well
            raise ValueError("is empty, expected at least one engine")
        if len({engine.name for engine in engines}) < len(engines):
            raise ValueError("needs a different name for each engine")
        return engines

    @field_validator("cores_of")
    @classmethod
    def _fitted(cls, text: str | None) -> str | None:
        """The profile's name, also where an alias is given, since fitted factors are looked up by it."""
        fitted = sorted(efficiency.shipped().keys() - {"pool"})
        if text is None or text in fitted:
            return text
        name = _own_name(text)
        if name not in fitted:
            hint = f" (known: {', '.join(fitted)})" if name else suggest(text, fitted)
            raise ValueError(f"is {text!r}, expected a profile whose cores have fitted factors{hint}")
        return name

    @field_validator("runtime")
    @classmethod
    def _known_software(cls, text: str | None) -> str | None:
        try:
            if text is not None:
                load_runtime(text)
        except OctosimError as error:
            raise ValueError(f"cannot be used: {error}") from None
        return text

    @model_validator(mode="after")
    def _forward_only(self) -> Device:
        if self.training.status == "forward-only" and any(engine.trains for engine in self.engines):
            raise ValueError("training.status is 'forward-only' but an engine has trains = true")
        return self

    @model_validator(mode="after")
    def _modes_fit(self) -> Device:
        units = {engine.name: engine.units.value for engine in self.engines}
        places: dict[str, int] = {}
        for i, mode in enumerate(self.modes):
            where, same = f"field modes[{i}]", places.setdefault(mode.key, i)
            if same != i:
                raise ValueError(f"{where}.name is {mode.name!r}, the name of modes[{same}]: case and MODE_ do not count")
            for name in mode.clock_ghz:
                if name not in units:
                    raise ValueError(f"{where}.clock_ghz names an unknown engine {name!r}{suggest(name, units)}")
            for name, count in mode.units.items():
                if name not in units:
                    raise ValueError(f"{where}.units names an unknown engine {name!r}{suggest(name, units)}")
                if count > units[name]:
                    raise ValueError(f"{where}.units has {count} of engine {name!r}, expected at most its {units[name]}")
        return self

    @property
    def bandwidth_b_s(self) -> float:
        """Sustained bandwidth in bytes/s, infinite where it is not known."""
        return self.memory.bandwidth_sustained_gb_s.value * 1e9 if self.memory.bandwidth_sustained_gb_s else float("inf")

    @property
    def overhead_s(self) -> float:
        return self.overhead_us.value * 1e-6

    @property
    def is_bare(self) -> bool:
        capacity = self.memory.capacity_gib
        return capacity is not None and capacity.value < BARE_GIB

    @property
    def busy_w(self) -> float | None:
        return self.power.busy_w.value if self.power.busy_w else None

    @property
    def training_note(self) -> str:
        """For output: "hypothetical: No documented way to train on ..."."""
        return f"{self.training.status}: {self.training.note}"


# --- finding and loading profiles -------------------------------------------------------------------------------------


def load(name_or_path: str | Path) -> Device:
    """The device of a profile name, an alias, "host", or a path (a Path, or text with a folder or ending in .toml).

    Raises OctosimError for an unknown name, and for a file that is missing, not TOML, or not a valid profile.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or os.sep in text:
        return check(Path(name_or_path))
    if text == "host":
        return host()
    found = _own_name(text) or (text if text in _shipped() else aliases().get(text))
    if found:
        return _shipped_device(found)
    if text in runtime_names():
        raise OctosimError(f"'{text}' is a runtime (--runtime; octosim profiles runtimes), not a device's profile")
    hint = suggest(text, [*names(), *aliases()], "octosim profiles list")
    raise OctosimError(f"unknown profile '{text}', and no path of a .toml file{hint}")


def configured(
    device: Device, mode: str | None = None, cluster: str | None = None, clock_ghz: float | None = None
) -> Device:
    """The device in one of its power modes, with one of its clusters, with its first engine at another clock; see `at_mode`,
    `with_cluster` and `at_clock`."""
    if mode is not None:
        device = at_mode(device, mode)
    if cluster is not None:
        device = with_cluster(device, cluster)
    return device if clock_ghz is None else at_clock(device, clock_ghz)


def at_clock(device: Device, ghz: float) -> Device:
    """The device with its first engine at another clock: a later board revision, an overclock, a power mode."""
    if not 0 < ghz < 1000:
        raise ArgumentError(f"{{clock_ghz}} must be above 0 and below 1000, not {ghz}")
    first, *others = device.engines
    figure = Figure(value=ghz, kind="estimate", source="asked for, in place of the profile's clock")
    return device.model_copy(update={"engines": (first.model_copy(update={"clock_ghz": figure}), *others)})


def at_mode(device: Device, name: str) -> Device:
    """The device in one of its power modes, by name or its beginning ("10W"), in any case; OctosimError where there is none."""
    wanted = _mode_key(name)
    known = {m.key: m for m in device.modes}
    near = [m for short, m in known.items() if short.startswith(f"{wanted}_") and not short.endswith("desktop")]
    mode = known.get(wanted) or (near[-1] if near else None)  # of several with one budget that with the most CPU cores
    if mode is None:
        if not device.modes:
            raise OctosimError(f"profile {device.name} has no power modes, so --mode {name} says nothing")
        raise OctosimError(f"profile {device.name} has no power mode '{name}'" + suggest(name, [m.name for m in device.modes]))

    def figure(value: float) -> dict[str, Any]:
        return {"value": value, "kind": "datasheet", "source": mode.source}

    engines = []
    for engine in device.engines:
        changes: dict[str, Any] = {}
        if engine.name in mode.clock_ghz:
            changes["clock_ghz"] = Figure(**figure(mode.clock_ghz[engine.name]))
        if engine.name in mode.units:
            units = mode.units[engine.name]
            changes["units"] = Count(value=units, kind="datasheet", source=mode.source)
            if sms := engine.multiprocessors:
                left = max(1, round(sms.value * units / engine.units.value))
                changes["multiprocessors"] = Count(value=left, kind="derived", source=mode.source)
        engines.append(engine.model_copy(update=changes))
    title = re.sub(r", (MAXN\w*|[\d.]+ W mode)\)$", ")", device.title)
    update: dict[str, Any] = {"engines": tuple(engines), "title": f"{title} in mode {mode.name}"}
    if mode.power_w:
        update["power"] = device.power.model_copy(update={"busy_w": Figure(**figure(mode.power_w)), "budget": True})
    if mode.bandwidth_gb_s:
        base = device.memory.bandwidth_sustained_gb_s
        scaled: Kind = "estimate" if base is None or base.kind == "estimate" else "derived"
        sustained = Figure(value=mode.bandwidth_gb_s, kind="measured" if mode.bandwidth_source else scaled,
                           source=mode.bandwidth_source or f"in proportion to the memory clock: {mode.source}")  # fmt: skip
        update["memory"] = device.memory.model_copy(update={"bandwidth_sustained_gb_s": sustained})
    return device.model_copy(update=update)


def clusters_of(device: Device) -> list[Engine]:
    """Clusters of CPU cores, as a big.LITTLE chip has several of."""
    return [engine for engine in device.engines if engine.kind == "cpu" and engine.core]


def cluster_shares(device: Device) -> dict[str, float]:
    """Share of each cluster of CPU cores in the peak of all of them, by the engine's name."""
    clusters = clusters_of(device)
    common = [dtype for dtype in ("float32", *DTYPES) if all(dtype in e.macs_per_clock.given() for e in clusters)]
    peaks = {e.name: e.peak_mac_s(common[0]) if common else 1.0 for e in clusters}
    return {name: peak / sum(peaks.values()) for name, peak in peaks.items()}


def with_cluster(device: Device, name: str) -> Device:
    """The device with one of its clusters of CPU cores alone, by the engine's name or the core's; or with one of its DLAs.

    Software builds a network for one DLA, so two never work on an image.  The busy power is of the whole board: of what it has
    above the idle power the cluster takes its share of the cores' peak.
    """
    wanted = name.casefold().removeprefix("cortex-")
    chosen = [e for e in device.engines if wanted in (e.name.casefold(), (e.core or "").casefold().removeprefix("cortex-"))]
    if not chosen:
        raise OctosimError(f"profile {device.name} has no cluster '{name}'" + suggest(name, [e.name for e in device.engines]))
    if any(engine.kind == "gpu" for engine in device.engines):
        one = Count(value=1, kind="derived", source="NVIDIA TensorRT developer guide, DLA: an engine is for one core")
        chosen = [engine.model_copy(update={"units": one}) if engine.kind == "npu" else engine for engine in chosen]
    update: dict[str, Any] = {"engines": tuple(chosen)}
    shares, idle, busy = cluster_shares(device), device.power.idle_w, device.power.busy_w
    if idle and busy and all(engine.name in shares for engine in chosen):
        share = sum(shares[engine.name] for engine in chosen)
        watts = idle.value + share * max(0.0, busy.value - idle.value)
        source = f"idle and {100 * share:.0f} % of what is above, this cluster's share of the cores' peak; {busy.source}"
        own = Figure(value=watts, kind="derived", source=source)
        update["power"] = device.power.model_copy(update={"busy_w": own if share < 1 else busy})
    return device.model_copy(update=update)


def text_of(name_or_path: str) -> str:
    """The TOML text of a shipped profile or a file, as it stands there."""
    load(name_or_path)
    if name_or_path == "host":
        raise OctosimError("profile host is read from this machine and has no file")
    name = aliases().get(name_or_path, name_or_path)
    if name in _shipped():
        return _shipped()[name].read_text(encoding="utf-8")
    return read_text(Path(name_or_path), TOML_BYTES, "profile file")


def names() -> list[str]:
    """Names of all profiles: the shipped files in alphabetic order, then "host"."""
    return [*sorted(_shipped()), "host"]


def aliases() -> dict[str, str]:
    """Alias -> profile name, of the shipped profiles."""
    return {alias: name for name in sorted(_shipped()) for alias in _aliases_of(name)}


@functools.cache
def _aliases_of(name: str) -> tuple[str, ...]:
    """Aliases of a shipped profile: those of its head, without reading the rest of it."""
    head = _file(name).read_text(encoding="utf-8").split("\n[", 1)[0]
    return tuple(tomllib.loads(head).get("aliases", ()))


def check(path: str | Path) -> Device:
    """Validate one file and return its device; raises OctosimError with one sentence naming the file and the field."""
    return parse(read_text(Path(path), TOML_BYTES, "profile file"), str(path))


def is_runtime(path: str | Path) -> bool:
    """Whether a file is a runtime's rather than a device's."""
    return _is_runtime(parse_toml(read_text(Path(path), TOML_BYTES, "profile file"), str(path)))


def _is_runtime(data: Mapping[str, Any]) -> bool:
    """Whether a file's content is a runtime's, by the fields that only one of the two kinds has."""
    device, runtime = Device.model_fields.keys(), Runtime.model_fields.keys()
    return len(data.keys() & (runtime - device)) > len(data.keys() & (device - runtime))


def json_schema() -> dict[str, Any]:
    """JSON Schema of a profile file."""
    return Device.model_json_schema()


def _own_name(text: str) -> str | None:
    """The name of octosim's own profile with this name or alias.  Nothing takes their place, so other packages' can wait."""
    own = _own()
    said = f'"{text}"'
    near = (name for name in sorted(own) if said in own[name].read_text(encoding="utf-8").split("\n[", 1)[0])
    return text if text in own else next((name for name in near if text in _aliases_of(name)), None)


def _own() -> dict[str, Traversable]:
    """Profile name -> file: package data of a wheel, else the folder beside the package in a checkout."""
    package = importlib.resources.files("octosim") / "hwprofiles"
    folder: Traversable = package if package.is_dir() else Path(__file__).resolve().parents[2] / "hwprofiles"
    if not folder.is_dir():
        raise OctosimError(f"{folder}: the folder of hardware profiles is missing, reinstall octosim")
    return _profiles(folder)


def _profiles(folder: Traversable) -> dict[str, Traversable]:
    return {file.name.removesuffix(".toml"): file for file in folder.iterdir() if file.name.endswith(".toml")}


def _shipped() -> dict[str, Traversable]:
    """Profile name -> file, of other packages and octosim's own, which come last: nothing takes their place."""
    found: dict[str, Traversable] = {}
    for folder in _of_other_packages():
        found |= _profiles(folder)
    return found | _own()


def _of_other_packages() -> list[Traversable]:
    """The folders of packages that entry points of octosim.profiles name; those that are broken are left out."""
    modules = extensions.loaded("octosim.profiles")[0].values()
    return [importlib.resources.files(module) for module in modules if isinstance(module, ModuleType)]


def _file(name: str) -> Traversable:
    """The file of a profile's name."""
    own = _own()
    return own[name] if name in own else _shipped()[name]


@functools.cache
def _shipped_device(name: str) -> Device:
    file = _file(name)
    return parse(file.read_text(encoding="utf-8"), file.name)


def parse(text: str, where: str) -> Device:
    """The device of a profile's text; `where` begins the sentence of an error."""
    data = parse_toml(text, where)
    if _is_runtime(data):
        raise OctosimError(f"{where}: a runtime's file and not a device's profile; octosim cost --runtime takes it")
    try:
        return Device.model_validate(data)
    except ValidationError as error:
        raise OctosimError(f"{where}: {problems_text(error, Device)}") from None


# --- the machine at hand ----------------------------------------------------------------------------------------------


@functools.cache
def host() -> Device:
    """The machine this runs on; the bandwidth is measured, once a process.

    Rates follow from the instruction set and are not calibrated; nothing is known about its power.
    """
    return read_host(Path("/"), platform.machine())


def is_here(device: Device, root: Path = Path("/"), machine: str = platform.machine()) -> bool:
    """Whether the machine at hand is the device: by the names in its profile, or by the title of a profile of `host`."""
    if device.name == "host":
        return device.title == host_reader.title_of(root, machine)
    said = host_reader.names(root)
    return any(text in said for text in device.machine)


def read_host(root: Path, machine: str) -> Device:
    """`host()` of a file tree (see octosim.hardware.detect.read)."""
    return Device.model_validate(host_reader.read(root, machine))
