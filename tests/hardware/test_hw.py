"""Hardware profiles: the shipped files, loading, error sentences, and reading the host."""

from __future__ import annotations

import copy
import json
import statistics
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from octosim import cost, hardware, schema
from octosim.cost import reference, runtimes
from octosim.errors import OctosimError
from octosim.hardware import detect, efficiency
from octosim.hardware import device as device_file
from octosim.hardware.device import PEAK_TOLERANCE
from octosim.numerics import ACCUMULATORS
from octosim.trace import Op

FOLDER = Path(hardware.__file__).resolve().parents[2] / "hwprofiles"
FILES = sorted(FOLDER.glob("*.toml"), key=lambda f: f.stem)
UNITS = ("_ghz", "_us", "_gb_s", "_gib", "_kib", "_w", "_gmac_s", "_pj_per_byte", "_bytes")
# counts, and entries of a table that carries the unit
UNITLESS = {"units", "call_scale", "tf32_per_clock", "multiprocessors", "int8", "float16", "float32", "m", "n"}
TABLES_OF_DTYPES = {"macs_per_clock", "gemm_efficiency", "published_peak_gmac_s", "pj_per_mac"}
INT8_LESS = {"jetson-nano", "jetson-tx2"}
FORWARD_ONLY = {"coral-edge-tpu", "hailo-8", "kendryte-k210", "max78002", "rk3588-npu"}
each_profile = pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)

GOOD = """
name = "toy"
title = "A toy"
overhead_us = { value = 1, kind = "estimate", source = "a guess" }
[training]
status = "supported"
note = "trains"
[[engines]]
name = "cpu"
accumulator = "exact32"
trains = true
units = { value = 2, kind = "datasheet", source = "sheet" }
clock_ghz = { value = 1.0, kind = "datasheet", source = "sheet" }
[engines.macs_per_clock]
int8 = { value = 8, kind = "datasheet", source = "sheet" }
[engines.gemm_efficiency]
int8 = { value = 0.5, kind = "estimate", source = "a guess" }
[memory]
bandwidth_sustained_gb_s = { value = 4, kind = "measured", source = "us" }
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def numbers(value, path=()):
    """(path, number) of every number anywhere in parsed TOML."""
    if isinstance(value, dict):
        for key, child in value.items():
            if key not in ("reproduces", "modes"):  # one source for the whole table
                yield from numbers(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from numbers(child, (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def at(data, path):
    for part in path:
        data = data[part]
    return data


# --- the shipped profiles ---------------------------------------------------------------------------------------------


def test_the_wanted_profiles_are_there():
    assert {"jetson-nano", "jetson-tx2", "jetson-agx-xavier", "jetson-xavier-nx", "jetson-orin-nano", "jetson-orin-nx",
            "jetson-agx-orin", "atlas-200dk", "raspberry-pi-3b-plus", "raspberry-pi-zero-2-w", "raspberry-pi-4",
            "raspberry-pi-5", "rk3588", "rk3588-npu", "coral-edge-tpu", "hailo-8", "kendryte-k210", "xeon-gold-6455b",
            "ryzen-9-6900hx"} <= {f.stem for f in FILES}
    assert hardware.names() == [*(f.stem for f in FILES), "host"]


@each_profile
def test_shipped_profile_is_valid_and_named_like_its_file(file):
    assert hardware.check(file).name == file.stem
    assert hardware.load(file.stem) == hardware.check(file)


@each_profile
def test_every_number_has_a_source_and_a_unit(file):
    data = tomllib.loads(file.read_text(encoding="utf-8"))
    found = list(numbers(data))
    assert len(found) > 5
    for path, _ in found:
        assert path[-1] == "value", f"{path} is a bare number"
        figure = at(data, path[:-1])
        assert figure["source"].strip() and figure["kind"] in ("datasheet", "measured", "derived", "estimate"), path
        key = path[-2]
        assert key in UNITLESS or key.endswith(UNITS), f"{key} has no unit"
        if key in hardware.DTYPES:
            assert path[-3] in TABLES_OF_DTYPES


@pytest.mark.parametrize("name, engine, dtype, gmac_s", [
    ("jetson-xavier-nx", "tensor-cores", "int8", 6760), ("jetson-xavier-nx", "tensor-cores", "float16", 3380),
    ("jetson-xavier-nx", "cuda-cores", "float32", 422), ("jetson-xavier-nx", "dla", "int8", 4510),
    ("atlas-200dk", "cube", "int8", 11000), ("atlas-200dk", "cube", "float16", 5500),
    ("raspberry-pi-4", "neon", "int8", 48), ("raspberry-pi-4", "neon", "float32", 23.94),
    ("raspberry-pi-5", "neon", "int8", 307), ("raspberry-pi-5", "neon", "float16", 153.5),
    ("raspberry-pi-5", "neon", "float32", 76.75), ("jetson-nano", "cuda-cores", "float16", 236),
    ("jetson-agx-xavier", "tensor-cores", "int8", 11280), ("jetson-agx-xavier", "dla", "int8", 5710),
    ("jetson-orin-nano", "tensor-cores", "int8", 10240), ("jetson-orin-nx", "tensor-cores", "int8", 15040),
    ("jetson-orin-nx", "dla", "int8", 10060), ("jetson-agx-orin", "tensor-cores", "int8", 42600),
    ("jetson-agx-orin", "dla", "int8", 26200), ("jetson-agx-orin", "cuda-cores", "float32", 2663),
    ("raspberry-pi-3b-plus", "neon", "float32", 22.2), ("raspberry-pi-zero-2-w", "neon", "float32", 15.9),
    ("rk3588", "a76", "int8", 307), ("rk3588-npu", "npu", "int8", 3072), ("coral-edge-tpu", "systolic-array", "int8", 2000),
    ("hailo-8", "dataflow", "int8", 13000), ("kendryte-k210", "kpu", "int8", 230),
    ("xeon-gold-6455b", "avx512-vnni", "int8", 24057), ("ryzen-9-6900hx", "avx2", "float32", 528.9)])
def test_units_times_clock_times_macs_is_the_known_peak(name, engine, dtype, gmac_s):
    found = next(e for e in hardware.load(name).engines if e.name == engine)
    assert found.peak_mac_s(dtype) / 1e9 == pytest.approx(gmac_s, rel=0.005)


@each_profile
def test_published_peaks_agree_with_derived_ones(file):
    for engine in hardware.check(file).engines:
        published = engine.published_peak_gmac_s.given() if engine.published_peak_gmac_s else {}
        for dtype, gmac_s in published.items():
            assert engine.peak_mac_s(dtype) / 1e9 == pytest.approx(gmac_s, rel=PEAK_TOLERANCE)


def test_dtypes_that_a_chip_lacks_are_absent():
    (pi4,) = hardware.load("pi4").engines
    assert pi4.peak_mac_s("float16") == 0 == pi4.rate_mac_s("float16")


def sourced(value):
    """Every figure and name of a device, as { value, kind, source }."""
    if isinstance(value, dict):
        if "source" in value and "kind" in value:
            yield value
        else:
            for child in value.values():
                yield from sourced(child)
    elif isinstance(value, list | tuple):
        for child in value:
            yield from sourced(child)


@each_profile
def test_sources_say_enough(file):
    """A number nobody published says why it is this one; the rest name a document, a repository or a measurement."""
    for entry in sourced(hardware.check(file).model_dump()):
        source = entry["source"]
        assert len(source) >= (20 if entry["kind"] == "estimate" else 8), source
        if entry["kind"] != "estimate":
            assert not any(word in source for word in ("no measurement found", "guess", "assume")), source


@each_profile
def test_numerics_are_those_of_an_int8_engine(file):
    device = hardware.check(file)
    accumulator = device.numerics.accumulator
    if accumulator:
        assert accumulator.value in ACCUMULATORS
        assert accumulator.value in [e.accumulator for e in device.engines if e.peak_mac_s("int8")]
    for engine in device.engines:  # a preset that an engine names is one too
        assert " " in engine.accumulator or engine.accumulator in {*ACCUMULATORS, "float32", "float16"}, engine.accumulator


def test_every_trainable_int8_chip_states_its_accumulator_but_the_atlas():
    """Huawei does not publish what the cube does on overflow."""
    trainable = {f.stem for f in FILES if any(e.trains and e.peak_mac_s("int8") for e in hardware.check(f).engines)}
    assert {name for name in trainable if not hardware.load(name).numerics.accumulator} == {"atlas-200dk"}


@each_profile
def test_what_a_chip_cannot_do(file):
    device = hardware.check(file)
    assert (device.training.status == "forward-only") == (file.stem in FORWARD_ONLY)
    assert (file.stem in FORWARD_ONLY) == (not any(engine.trains for engine in device.engines))
    assert (file.stem in INT8_LESS) == (not any(engine.peak_mac_s("int8") for engine in device.engines))
    assert ("No INT8 units" in device.note) == (file.stem in INT8_LESS)


def product(dtype, pass_="forward"):
    return Op("fc", pass_, "gemm", "linear", (512, 512, 512), dtype, 0, 0)


@pytest.mark.parametrize("name", sorted(INT8_LESS))
def test_a_chip_without_int8_gains_nothing_from_int8(name):
    for pass_ in ("forward", "dX", "dW"):
        int8, float32 = cost.predict([product("int8", pass_), product("float32", pass_)], hardware.load(name))
        assert int8.dtype_used == "float32" and int8.compute_s == float32.compute_s
        assert "no int8 units" in int8.note


@each_profile
def test_every_profile_prices_a_forward_product(file):
    """... and says so where it assumes an efficiency or knows no bandwidth."""
    device = hardware.check(file)
    (one,) = cost.predict([product("int8")], device)
    assert 0 < one.time_s < 1
    notes = cost.cost_json([one], device)["notes"]
    unknown = device.memory.bandwidth_sustained_gb_s is None and device.memory.link_gb_s is None
    assert ("no known memory bandwidth" in " ".join(notes)) == unknown
    if file.stem in FORWARD_ONLY:
        with pytest.raises(OctosimError, match="no engine has trains = true"):
            cost.predict([product("int8", "dW")], device)


def solved(kind):
    """Efficiencies of shipped profiles that reproduce a published figure, by whether the engine is a GPU."""
    rows = [(e, r) for f in FILES for e, _, r in reference.references(hardware.check(f))]
    return [r.value for e, r in rows if (e.kind == "gpu") == (kind == "gpu")]


def test_assumed_efficiencies_lie_among_the_known_ones():
    assert len(solved("gpu")) >= 7 and len(solved("npu")) >= 4
    assert statistics.median(solved("gpu")) == pytest.approx(cost.WAVE_EFFICIENCY, abs=0.1)
    assert statistics.median(solved("npu")) == pytest.approx(cost.ASSUMED_EFFICIENCY, abs=0.05)


@pytest.mark.parametrize("name, engine, dtype", [
    (f.stem, e.name, d) for f in FILES for e, d, _ in reference.references(hardware.check(f))])
def test_an_efficiency_reproduces_its_source(name, engine, dtype):
    device = hardware.load(name)
    (chosen, ratio), = [(e, r) for e, d, r in reference.references(device) if (e.name, d) == (engine, dtype)]
    published = ratio.reproduces.images_s or ratio.reproduces.gmac_s
    assert reference.predicted(device, chosen, dtype, ratio.reproduces, ratio.value) == pytest.approx(published, rel=0.03)


@each_profile
def test_a_sourced_efficiency_of_a_network_says_what_it_reproduces(file):
    """One that follows from another engine's, or that no factor-free engine uses, says so in words."""
    for engine in hardware.check(file).engines:
        for dtype in engine.gemm_efficiency.given() if engine.gemm_efficiency else ():
            ratio = getattr(engine.gemm_efficiency, dtype)
            assert ratio.kind == "estimate" or ratio.reproduces or "together" in ratio.source, (file.stem, engine.name, dtype)


def test_aliases_resolve_and_are_unique():
    every = [alias for f in FILES for alias in hardware.check(f).aliases]
    assert len(set(every)) == len(every)
    assert not set(every) & set(hardware.names())
    wanted = {"jetson": "jetson-xavier-nx", "xavier-nx": "jetson-xavier-nx", "atlas": "atlas-200dk",
              "pi3": "raspberry-pi-3b-plus", "pi4": "raspberry-pi-4", "pi5": "raspberry-pi-5",
              "tx2": "jetson-tx2", "x86-server": "xeon-gold-6455b", "x86-laptop": "ryzen-9-6900hx"}
    assert wanted.items() <= hardware.aliases().items()
    for alias, name in hardware.aliases().items():
        assert hardware.load(alias).name == name


def test_atlas_says_that_training_is_hypothetical():
    assert hardware.load("atlas").training_note.startswith("hypothetical: No documented way to train")
    assert hardware.load("jetson").training_note.startswith("supported: ")


def test_device_is_frozen():
    with pytest.raises(ValidationError):
        hardware.load("pi4").name = "pi3"


def test_json_schema_is_json_and_names_the_fields():
    schema = hardware.json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert {"name", "engines", "memory"} <= set(schema["properties"])
    assert schema["$defs"]["Figure"]["required"] == ["value", "kind", "source"]
    assert schema["$defs"]["AccumulatorName"]["properties"]["value"]["enum"] == list(ACCUMULATORS)
    assert "pseudo-stochastic" in schema["$defs"]["RoundingName"]["properties"]["value"]["enum"]


def test_package_data_comes_first(tmp_path, monkeypatch):
    (tmp_path / "hwprofiles").mkdir()
    (tmp_path / "hwprofiles" / "toy.toml").write_text(GOOD, encoding="utf-8")
    monkeypatch.setattr(device_file.importlib.resources, "files", lambda package: tmp_path)
    assert hardware.names() == ["toy", "host"]
    device_file._shipped_device.cache_clear()
    assert hardware.load("toy").title == "A toy"


# --- bad input --------------------------------------------------------------------------------------------------------


def test_good_file_loads_by_path(tmp_path):
    path = write(tmp_path, GOOD)
    assert hardware.load(path) == hardware.load(str(path)) == hardware.check(path)
    assert hardware.load(path).busy_w is None


MODES = '[[modes]]\nname = "MODE_10W"\nsource = "sheet"\n{}\n[memory]'
FACTORS = "[calibration.{}]\n" + tomli_w.dumps(efficiency.table(efficiency.shipped()["pool"]["float32"])) + "[memory]"
NUMERICS = '[numerics]\n{} = {{ value = "{}", kind = "datasheet", source = "sheet" }}\n[memory]'
SHEET = '{ value = 1.0, kind = "datasheet", source = "sheet" }'
BAD = {  # what is wrong: (text replaced, replacement, what the sentence must say, in order)
    "misspelt": ("clock_ghz =", "clock_gzh =", ["unknown field engines[0].clock_gzh", "did you mean clock_ghz?"]),
    "misspelt dtype": ("int8 = { value = 8", "int_8 = { value = 8", ["engines[0].macs_per_clock.int_8", "int8?"]),
    "misspelt table": ("[memory]", "[memry]", ["unknown field memry", "did you mean memory?"]),
    "misspelt source": ('source = "us"', 'sorce = "us"', ["memory.bandwidth_sustained_gb_s.sorce", "source?"]),
    "alien": ('name = "toy"', 'name = "toy"\nxyzzy = 1', ["unknown field xyzzy"]),
    "odd key": ('name = "toy"', 'name = "toy"\n"a.\\nb" = 1', [r"unknown field 'a.\nb'"]),
    "pydantic's own word": ('name = "toy"', 'name = "toy"\n"[key]" = 1', ["unknown field '[key]'"]),
    "missing": (f"clock_ghz = {SHEET}\n", "", ["engines[0].clock_ghz is missing", "{ value, kind, source }"]),
    "missing table": ('[training]\nstatus = "supported"\nnote = "trains"', "", ["training is missing", "status, note"]),
    "missing source": (', source = "us"', "", ["memory.bandwidth_sustained_gb_s.source is missing", "source"]),
    "blank source": ('source = "us"', 'source = " "', ["bandwidth_sustained_gb_s.source is ' '", "not blanks"]),
    "missing kind": ('kind = "measured", ', "", ["memory.bandwidth_sustained_gb_s.kind is missing"]),
    "unknown kind": ('"measured"', '"heard"', ["sustained_gb_s.kind is 'heard'", "'datasheet', 'measured', 'derived'"]),
    "negative": ("value = 4,", "value = -4,", ["memory.bandwidth_sustained_gb_s.value is -4", "greater than 0"]),
    "zero": ("value = 8,", "value = 0,", ["engines[0].macs_per_clock.int8.value is 0", "greater than 0"]),
    "negative delay": ("value = 1,", "value = -1,", ["overhead_us.value is -1", "at least 0"]),
    "infinite": ("value = 4,", "value = inf,", ["memory.bandwidth_sustained_gb_s.value is inf", "finite"]),
    "nan": ("value = 4,", "value = nan,", ["memory.bandwidth_sustained_gb_s.value is nan"]),
    "efficiency": ("value = 0.5", "value = 50", ["engines[0].gemm_efficiency.int8.value is 50", "at most 1"]),
    "bare number": (f"clock_ghz = {SHEET}", "clock_ghz = 1.0", ["engines[0].clock_ghz is 1.0", "{ value, kind, "]),
    "text for number": ("value = 4,", 'value = "4",', ["bandwidth_sustained_gb_s.value is '4'", "a number"]),
    "boolean for number": ("value = 4,", "value = true,", ["bandwidth_sustained_gb_s.value is True", "a number"]),
    "half a unit": ("value = 2,", "value = 2.5,", ["engines[0].units.value is 2.5", "a whole number"]),
    "number for text": ('accumulator = "exact32"', "accumulator = 32", ["engines[0].accumulator is 32", "text"]),
    "text for boolean": ("trains = true", 'trains = "yes"', ["engines[0].trains is 'yes'", "true or false"]),
    "status": ('"supported"', '"sure"', ["training.status is 'sure'", "'supported', 'hypothetical' or 'forward-only'"]),
    "forward-only": ('"supported"', '"forward-only"', ["training.status is 'forward-only' but", "trains = true"]),
    "accumulator": ("[memory]", NUMERICS.format("accumulator", "sdott"), ["numerics.accumulator.value is 'sdott'", "smlal"]),
    "rounding": ("[memory]", NUMERICS.format("rounding", "nearest"), ["numerics.rounding.value is 'nearest'", "'half-even'"]),
    "requantization": ("[memory]", NUMERICS.format("requantization", "shift"),
                       ["numerics.requantization.value is 'shift'", "'power-of-two'"]),
    "numerics": ("[memory]", '[numerics]\naccumulator = "sdot"\n[memory]',
                 ["numerics.accumulator is 'sdot'", "{ value, kind, source }"]),
    "name": ('name = "toy"', 'name = "My Toy"', ["field name is 'My Toy'", "lower-case"]),
    "aliases": ('name = "toy"', 'name = "toy"\naliases = "t"', ["field aliases is 't'", "a list"]),
    "efficiency of nothing": ("[engines.gemm_efficiency]\nint8", "[engines.gemm_efficiency]\nfloat32",
                      ["engines[0]", "gemm_efficiency.float32 but no macs_per_clock.float32"]),
    "no dtype": ('int8 = { value = 8, kind = "datasheet", source = "sheet" }', "",
                 ["engines[0].macs_per_clock", "at least one of int8, float16, float32"]),
    "wrong peak": ("[engines.gemm_efficiency]", f"[engines.published_peak_gmac_s]\nint8 = {SHEET}\n"
                   "[engines.gemm_efficiency]", ["engines[0]", "is 16 GMAC/s", "published_peak_gmac_s.int8 of 1"]),
    "peak of nothing": ("[engines.gemm_efficiency]", f"[engines.published_peak_gmac_s]\nfloat32 = {SHEET}\n"
                        "[engines.gemm_efficiency]", ["engines[0]", "no macs_per_clock.float32"]),
    "arithmetic of factors": ("[memory]", FACTORS.format("fp32"),
                              ["field calibration has the key 'fp32', expected 'float32', 'float16', "]),
    "odd key of factors": ("[memory]", FACTORS.format('"[key]"'), ["field calibration has the key '[key]', expected "]),
    "odd key of a table": ("[memory]", MODES.format('clock_ghz = { "[key]" = -1.0 }'),
                           ["field modes[0].clock_ghz.'[key]' is -1.0, expected a number greater than 0"]),
    "mode of no engine": ("[memory]", MODES.format("clock_ghz = { cpv = 0.6 }"),
                          ["field modes[0].clock_ghz names an unknown engine 'cpv'", "did you mean 'cpu'?"]),
    "units of no engine": ("[memory]", MODES.format("units = { cores = 2 }"),
                           ["field modes[0].units names an unknown engine 'cores'", "known: cpu"]),
    "more units than there are": ("[memory]", MODES.format("units = { cpu = 3 }"),
                                  ["field modes[0].units has 3 of engine 'cpu'", "at most its 2"]),
    "two modes of one name": ("[memory]", MODES.format('[[modes]]\nname = "10w"\nsource = "sheet"'),
                              ["field modes[1].name is '10w'", "modes[0]"]),
    "cores of no profile": ('name = "toy"', 'name = "toy"\ncores_of = "raspbery-pi-4"',
                            ["field cores_of is 'raspbery-pi-4'", "did you mean 'raspberry-pi-4'?"]),
    "cores without factors": ('name = "toy"', 'name = "toy"\ncores_of = "rk3399"',
                              ["field cores_of is 'rk3399'", "fitted factors (known: ", "raspberry-pi-4"]),
    "cores of the pool": ('name = "toy"', 'name = "toy"\ncores_of = "pool"', ["field cores_of is 'pool'", "known: "]),
    "software": ('name = "toy"', 'name = "toy"\nruntime = "tflight"',
                 ["field runtime cannot be used: unknown runtime 'tflight'", "did you mean 'tflite'?"]),
    "software's file": ('name = "toy"', 'name = "toy"\nruntime = "no/such.toml"', ["field runtime", "no such runtime file"]),
    "near a preset": ('accumulator = "exact32"', 'accumulator = "exact-32b"',
                      ["field engines[0] has the accumulator 'exact-32b'; did you mean 'exact32'?"]),
    "more than the peak": ("[memory]", f"[memory]\nbandwidth_peak_gb_s = {SHEET}",
                           ["field memory has a bandwidth_sustained_gb_s of 4, above its bandwidth_peak_gb_s of 1"]),
    "idle above busy": ("[memory]", f"[power]\nidle_w = {SHEET.replace('1.0', '3.5')}\nbusy_w = {SHEET}\n[memory]",
                        ["field power has an idle_w of 3.5, above its busy_w of 1"]),
    "a runtime's file": (GOOD, 'name = "mine"\ntitle = "mine"\nengines = ["cpu"]\nsource = "my code"\ncodes = "products"\n',
                         ["a runtime's file and not a device's profile", "--runtime"]),
    "syntax": ("trains = true", "trains = ", ["not valid TOML", "line 11"]),
    "twice": ("trains = true", "trains = true\ntrains = true", ["not valid TOML"]),
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_profile_gives_one_sentence(case, tmp_path):
    old, new, wanted = BAD[case]
    assert GOOD.count(old) >= 1, "the case does not change the file"
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(OctosimError) as caught:
        hardware.load(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: ")
    assert "\n" not in sentence and len(sentence) < 300 + len(str(path))
    assert " more)" not in sentence, "one mistake must be one problem"
    position = 0
    for part in wanted:
        assert part in sentence[position:], sentence
        position = sentence.index(part, position)


@pytest.mark.parametrize("gmac_s, good", [(16, True), (15.6, True), (16.4, True), (15.4, False), (16.6, False)])
def test_published_peak_may_differ_by_three_percent(gmac_s, good, tmp_path):
    published = SHEET.replace("1.0", str(gmac_s))  # 2 units x 1 GHz x 8 MAC/clock = 16 GMAC/s
    path = write(tmp_path, GOOD.replace("[memory]", f"[engines.published_peak_gmac_s]\nint8 = {published}\n[memory]"))
    if good:
        assert hardware.check(path).engines[0].published_peak_gmac_s.int8.value == gmac_s
    else:
        with pytest.raises(OctosimError, match="is 16 GMAC/s"):
            hardware.check(path)


def test_numerics_and_energy_load(tmp_path):
    text = GOOD.replace("[memory]", NUMERICS.format("accumulator", "sdot")) + f"[energy]\npj_per_mac.int8 = {SHEET}\n"
    device = hardware.check(write(tmp_path, text))
    assert device.numerics.accumulator.value == "sdot" and device.numerics.rounding is None
    assert device.energy.pj_per_mac.given() == {"int8": 1.0} and device.energy.pj_per_byte is None


def test_a_mode_with_all_of_an_engine_loads(tmp_path):
    text = GOOD.replace("[memory]", MODES.format("units = { cpu = 2 }\nclock_ghz = { cpu = 0.5 }"))
    device = hardware.check(write(tmp_path, text))
    assert hardware.at_mode(device, "10w").engines[0].clock_ghz.value == 0.5


@pytest.mark.parametrize("name", ["raspberry-pi-4", "pi4"])
def test_cores_of_another_profile_by_name_or_alias(name, tmp_path):
    base = hardware.load("raspberry-pi-4")
    text = hardware.text_of("raspberry-pi-4").replace('name = "raspberry-pi-4"', f'name = "my-board"\ncores_of = "{name}"')
    device = hardware.check(write(tmp_path, text))
    assert cost.factors_of(device, device.engines[0], "int8") == cost.factors_of(base, base.engines[0], "int8")


@pytest.mark.parametrize("name", ["tflite", "litert"])
def test_the_common_software_by_name_or_alias(name, tmp_path):
    device = hardware.check(write(tmp_path, GOOD.replace('name = "toy"', f'name = "toy"\nruntime = "{name}"')))
    assert runtimes.default(device, False).name == "tflite"


@each_profile
def test_a_profile_can_be_read_from_its_own_fields(file):
    assert hardware.Device.model_validate(hardware.check(file).model_dump()) == hardware.check(file)


def test_unknown_efficiency_and_bandwidth(tmp_path):
    text = GOOD[:GOOD.index("[engines.gemm_efficiency]")]
    device = hardware.check(write(tmp_path, text))
    (engine,) = device.engines
    assert engine.efficiency("int8") is None and engine.rate_mac_s("int8") == 0 and engine.rate_mac_s("int8", 0.25) == 4e9
    assert device.bandwidth_b_s == float("inf")
    (one,) = cost.predict([product("int8")], device)
    assert one.memory_s == 0 and one.compute_s == pytest.approx(512**3 / (16e9 * cost.ASSUMED_EFFICIENCY))
    assert cost.cost_json([one], device)["notes"] == [
        f"toy: efficiency of cpu in int8 unknown, {cost.ASSUMED_EFFICIENCY} assumed",
        "toy has no known memory bandwidth: traffic costs no time"]


def test_two_engines_of_one_name(tmp_path):
    engine = GOOD[GOOD.index("[[engines]]"):GOOD.index("[memory]")]
    with pytest.raises(OctosimError, match="field engines needs a different name for each engine"):
        hardware.check(write(tmp_path, GOOD.replace("[memory]", engine + "[memory]")))


def test_no_engine(tmp_path):
    engine = GOOD[GOOD.index("[[engines]]"):GOOD.index("[memory]")]
    with pytest.raises(OctosimError, match="field engines is missing, expected"):
        hardware.check(write(tmp_path, GOOD.replace(engine, "")))
    with pytest.raises(OctosimError, match="field engines is empty, expected at least one engine"):
        hardware.check(write(tmp_path, "engines = []\n" + GOOD.replace(engine, "")))


def test_every_problem_is_named(tmp_path):
    """In one sentence, so that a file is mended in one pass."""
    text = GOOD.replace("trains = true\n", "").replace("value = 4,", "value = -4,").replace("title", "titel")
    with pytest.raises(OctosimError) as caught:
        hardware.check(write(tmp_path, "extra = 1\n" + text))
    told = str(caught.value).split("; ")
    assert len(told) == 4 and all(any(word in clause for clause in told) for word in ("titel", "extra", "trains", "-4"))


def test_of_very_many_problems_the_rest_is_counted(tmp_path):
    with pytest.raises(OctosimError, match=r"unknown field x0; .*x19; and 5 more$"):
        hardware.check(write(tmp_path, "".join(f"x{i} = 1\n" for i in range(25)) + GOOD))


@pytest.mark.parametrize("name, guess", [("jetsn", "jetson"), ("pi-4", "pi4"), ("atlas-200", "atlas-200dk"),
                                         ("JETSON", "jetson"), ("", None), ("hots", "host")])
def test_unknown_name(name, guess):
    with pytest.raises(OctosimError) as caught:
        hardware.load(name)
    sentence = str(caught.value)
    assert repr(name) in sentence and "\n" not in sentence
    assert (f"did you mean '{guess}'?" if guess else "octosim profiles list") in sentence


def test_unreadable_files(tmp_path):
    with pytest.raises(OctosimError, match="no such profile file"):
        hardware.load(tmp_path / "absent.toml")
    with pytest.raises(OctosimError, match="cannot be read"):
        hardware.load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OctosimError, match="UTF-8"):
        hardware.load(tmp_path / "binary.toml")


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
                   st.just(10**400),
                   st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.text()))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_mutation_is_accepted_or_explained(data):
    """Any part of a profile replaced by anything is a Device or a ValidationError with a readable first problem."""
    profile = copy.deepcopy(tomllib.loads(GOOD))
    node = profile
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        child = node[key]
        if isinstance(child, dict | list) and child and data.draw(st.booleans()):
            node = child
            continue
        break
    if data.draw(st.booleans()) or isinstance(node, list):
        node[key] = data.draw(LEAVES)
    else:
        del node[key]
    try:
        hardware.Device.model_validate(profile)
    except ValidationError as error:
        sentence = schema.problems_text(error, hardware.Device)
        assert sentence and "\n" not in sentence and len(sentence) < 300 * error.error_count()


# --- the host ---------------------------------------------------------------------------------------------------------


def test_host_here():
    device = hardware.host()
    assert device is hardware.load("host"), "measured once a process"
    assert device.name == "host" and device.training.status == "supported" and device.busy_w is None
    (engine,) = device.engines
    assert 0 < engine.rate_mac_s("float32") < engine.peak_mac_s("float32")
    assert engine.peak_mac_s("int8") >= engine.peak_mac_s("float32")
    assert 1e8 < device.bandwidth_b_s < 1e13
    assert device.memory.bandwidth_sustained_gb_s.kind == "measured"
    assert device.memory.capacity_gib is None or device.memory.capacity_gib.value > 0.1


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def arm(features: str, part: str, cpus: int = 4) -> str:
    return "\n".join(f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU part\t: {part}\n"
                     for i in range(cpus)) + "\nHardware\t: BCM2835\n"


def x86(flags: str, vendor: str = "GenuineIntel", family: str = "6", cpus: int = 4, cores: int = 2) -> str:
    return "\n".join(f"processor\t: {i}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel name\t: A CPU\n"
                     f"cpu MHz\t\t: {2000 + i}.5\nphysical id\t: 0\ncore id\t\t: {i % cores}\nflags\t\t: {flags}\n"
                     for i in range(cpus))


@pytest.mark.parametrize("machine, cpuinfo, accumulator, int8, float32, kind", [
    ("aarch64", arm("fp asimd crc32", "0xd08"), "smlal", 8, 4, "estimate"),
    ("aarch64", arm("fp asimd asimdhp asimddp", "0xd0b"), "sdot", 32, 8, "derived"),
    ("aarch64", arm("fp asimd asimdhp asimddp", "0xd05"), "sdot", 16, 4, "derived"),
    ("aarch64", arm("fp asimd asimddp i8mm", "0xd40"), "acc32-wrap", 64, 8, "derived"),
    ("x86_64", x86("sse2 avx2 avx512f avx512_vnni"), "vpdpbusd", 128, 32, "derived"),
    ("x86_64", x86("sse2 avx2 avx512_vnni", "AuthenticAMD", "25"), "vpdpbusd", 64, 16, "derived"),
    ("x86_64", x86("sse2 avx2 avx512_vnni", "AuthenticAMD", "26"), "vpdpbusd", 64, 16, "estimate"),
    ("x86_64", x86("sse2 avx2 avx_vnni"), "vpdpbusd", 64, 16, "derived"),
    ("x86_64", x86("sse2 avx2"), "maddubs", 32, 16, "estimate"),
    ("x86_64", x86("sse2"), "maddubs", 16, 8, "estimate"),
    ("riscv64", "processor : 0\nisa : rv64imafdc\n", "maddubs", 16, 8, "estimate"),
    ("aarch64", "", "smlal", 8, 4, "estimate")])
def test_instruction_sets(tmp_path, machine, cpuinfo, accumulator, int8, float32, kind):
    device = hardware.read_host(tree(tmp_path, {"proc/cpuinfo": cpuinfo}), machine)
    (engine,) = device.engines
    assert engine.accumulator == accumulator == device.numerics.accumulator.value
    assert engine.macs_per_clock.given() == {"int8": int8, "float32": float32}
    assert engine.macs_per_clock.int8.kind == kind
    assert "float16" not in engine.macs_per_clock.given()


def test_host_reads_a_raspberry_pi(tmp_path):
    device = hardware.read_host(tree(tmp_path, {
        "proc/cpuinfo": arm("fp asimd crc32", "0xd08"),
        "proc/meminfo": "MemTotal:        3884356 kB\nMemFree: 1 kB\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1500000\n",
        "sys/devices/system/cpu/cpu0/cache/index0/type": "Data\n",
        "sys/devices/system/cpu/cpu0/cache/index0/level": "1\n",
        "sys/devices/system/cpu/cpu0/cache/index0/size": "32K\n",
        "sys/devices/system/cpu/cpu0/cache/index1/type": "Instruction\n",
        "sys/devices/system/cpu/cpu0/cache/index1/level": "1\n",
        "sys/devices/system/cpu/cpu0/cache/index1/size": "48K\n",
        "sys/devices/system/cpu/cpu0/cache/index2/type": "Unified\n",
        "sys/devices/system/cpu/cpu0/cache/index2/level": "2\n",
        "sys/devices/system/cpu/cpu0/cache/index2/size": "1024K\n",
        "sys/devices/system/cpu/cpu0/cache/index2/shared_cpu_list": "0-3\n"}), "aarch64")
    assert device.title == "Raspberry Pi 4 Model B Rev 1.4"
    assert device.engines[0].peak_mac_s("int8") == pytest.approx(48e9)
    assert device.memory.capacity_gib.value == pytest.approx(3884356 / 2**20)
    assert [(c.name, c.size_kib.value, c.shared_by) for c in device.caches] == [
        ("L1D", 32, "unknown"), ("L2", 1024, "logical CPUs 0-3")]


@pytest.mark.parametrize("said, name", [
    ({"model": "Raspberry Pi 4 Model B Rev 1.4\0"}, "raspberry-pi-4"),
    ({"model": "Raspberry Pi 3 Model B Plus Rev 1.3\0"}, "raspberry-pi-3b-plus"),
    ({"model": "Raspberry Pi 3 Model B Rev 1.2\0"}, None),
    ({"model": "Raspberry Pi 5 Model B Rev 1.0\0"}, "raspberry-pi-5"),
    ({"model": "Raspberry Pi Zero 2 W Rev 1.0\0"}, "raspberry-pi-zero-2-w"),
    ({"model": "Orange Pi 5\0", "compatible": "xunlong,orangepi-5\0rockchip,rk3588s\0"}, "rk3588"),
    ({"model": "NVIDIA Jetson Nano Developer Kit\0"}, None),  # its profile is of the GPU
    ({"cpu": "AMD Ryzen 9 6900HX with Radeon Graphics"}, "ryzen-9-6900hx"),
    ({"cpu": "Intel(R) Xeon(R) Gold 6455B"}, "xeon-gold-6455b"), ({"cpu": "A CPU"}, None), ({}, None)])
def test_which_profile_is_this_machine(tmp_path, said, name):
    """By what boards and CPUs call themselves; also read by host(), whose calibrated profile is then this machine's."""
    files = {f"proc/device-tree/{key}": text for key, text in said.items() if key != "cpu"}
    if "cpu" in said:
        files["proc/cpuinfo"] = f"processor\t: 0\nmodel name\t: {said['cpu']}\n"
    root = tree(tmp_path, files)
    assert [n for n in hardware.names()[:-1] if hardware.is_here(hardware.load(n), root, "aarch64")] == ([name] if name else [])
    here = hardware.read_host(root, "aarch64")
    assert hardware.is_here(here, root, "aarch64")
    assert not hardware.is_here(here.model_copy(update={"title": "another machine"}), root, "aarch64")


def test_host_counts_cores_not_threads(tmp_path):
    device = hardware.read_host(tree(tmp_path, {"proc/cpuinfo": x86("avx2", cpus=4, cores=2)}), "x86_64")
    assert device.engines[0].units.value == 2
    assert device.engines[0].clock_ghz.value == pytest.approx(2.0035)
    assert device.title == "A CPU"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64", ""])
def test_host_with_every_file_missing(tmp_path, machine):
    device = hardware.read_host(tmp_path, machine)
    assert device.engines[0].clock_ghz.kind == "estimate"
    assert device.engines[0].units.value >= 1
    assert device.memory.capacity_gib is None and device.caches == ()


@pytest.mark.parametrize("junk", ["", "0", "-5", "nan", "garbage\n\n:::\n", "processor"])
def test_host_with_junk_in_every_file(tmp_path, junk):
    index = "sys/devices/system/cpu/cpu0/cache/index0/"
    files = ["proc/cpuinfo", "proc/meminfo", "proc/device-tree/model", index + "type", index + "level", index + "size",
             "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"]
    device = hardware.read_host(tree(tmp_path, dict.fromkeys(files, junk)), "aarch64")
    assert device.engines[0].peak_mac_s("int8") > 0
    assert device.engines[0].clock_ghz.kind == "estimate"


def test_copy_bandwidth_counts_reads_and_writes(monkeypatch):
    """A copy that takes 0.02 s of a fake clock, once 0.01 s: the best counts, both directions count."""
    now = 0.0
    durations = iter([0.02, 0.01] + [0.02] * 100)

    def copy(target, source):
        nonlocal now
        now += next(durations)

    monkeypatch.setattr(detect.time, "perf_counter", lambda: now)
    monkeypatch.setattr(detect.np, "copyto", copy)
    assert detect.copy_bandwidth(16 << 20) == pytest.approx(2 * (1 << 20) / 0.01)
