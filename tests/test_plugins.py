"""Methods, profiles and data of other packages: as `octosim new method` writes them, broken ones, and the suite for all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from kit import reader
from kit.cli import octosim as command

import octosim
from octosim import core, extensions, graph, methods, train
from octosim.engine.layers import Conv2d, Flatten, Linear, ReLU, Unweighted, Weighted
from octosim.engine.nodes import FullProduct
from octosim.errors import OctosimError
from octosim.evidence import golden
from octosim.methods.octo import Octo
from octosim.testing import check_method

PROFILE = Path(__file__).parents[1] / "hwprofiles" / "raspberry-pi-4.toml"
(DATA,) = [block.text for block in reader.blocks(reader.DOCS / "data.md") if block.title == "columns.py"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for sys.path with a package of `octosim new method`, a profile, data, and entry points that are broken."""
    folder = tmp_path_factory.mktemp("site")
    done = command("new", "method", "clipped", "--out", str(folder / "package"))
    assert done.returncode == 0, done.stderr
    (folder / "package" / "octosim_clipped").rename(folder / "octosim_clipped")
    (folder / "theirs").mkdir()
    (folder / "theirs" / "__init__.py").write_text(DATA)
    (folder / "theirs" / "scaling.py").write_text(SCALE)
    text = PROFILE.read_text().replace('name = "raspberry-pi-4"', 'name = "my-board"')
    (folder / "theirs" / "my-board.toml").write_text(
        "\n".join(line for line in text.splitlines() if not line.startswith("aliases")) + "\n"
    )
    about = folder / "theirs-1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.5\n")
    (about / "top_level.txt").write_text("octosim_clipped\ntheirs\n")
    (about / "RECORD").write_text("")
    (about / "entry_points.txt").write_text(
        "[octosim.methods]\nclipped = octosim_clipped:Clipped\nbroken = no_such_module:X\noctosim = json:JSONDecoder\n"
        "octo = octosim_clipped:Clipped\n[octosim.profiles]\ntheirs = theirs\ngone = nowhere\n"
        "[octosim.data]\ncolumns = theirs:Columns\ngone = nowhere:X\n"
        "[octosim.layers]\ntheirs-scale = theirs.scaling:Scale\ngone = nowhere:X\n"
    )
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.syspath_prepend(str(site))
    extensions.entry_points.cache_clear()
    yield site
    extensions.entry_points.cache_clear()


RUN = "--model lenet5 --batch-size 20"


def test_from_training_to_the_report(installed: Path, tmp_path: Path) -> None:
    """A method of 60 lines outside the package: trained, resumed, verified, priced, studied, reported."""
    lines = (installed / "octosim_clipped" / "__init__.py").read_text().splitlines()
    assert len(lines) <= 70 and len([line for line in lines if line.strip()]) <= 60
    run = tmp_path / "run"
    done = command("train", *RUN.split(), "--steps", "3", "--method", "clipped", "--set", "share=0.8", "--out", str(run))
    assert done.returncode == 0, done.stderr
    decided = json.loads((run / "manifest.json").read_text())["decides"]["method"]
    assert decided["name"] == "clipped" and decided["parameters"] == {"share": 0.8}
    assert decided["plugin"]["package"] == "theirs" and decided["plugin"]["version"] == "1.5"
    assert command("verify", str(run)).returncode == 0
    by_path = octosim.train(model="lenet5", batch_size=20, steps=3, method="octosim_clipped:Clipped", parameters={"share": 0.8})
    assert by_path.digest == octosim.open(run).digest
    cost = command("cost", "--method", "clipped", "--model", "lenet5", "--profile", "my-board", "--json")
    assert cost.returncode == 0 and json.loads(cost.stdout)["total"]["time_s"] > 0, cost.stderr
    (tmp_path / "st.toml").write_text(
        '[base]\nmodel = "lenet5"\nbatch_size = 20\nsteps = 2\n[[grid]]\nmethod = ["clipped", "octo"]\n'
    )
    done = command("study", str(tmp_path / "st.toml"), "--jobs", "1", "--out", str(tmp_path / "study"))
    assert done.returncode == 0, done.stderr
    page = tmp_path / "page.md"
    done = command("report", str(tmp_path / "study"), "--profile", "my-board", "-o", str(page))
    assert done.returncode == 0 and "clipped" in page.read_text(), done.stderr
    listed = command("methods", "--json")
    assert "clipped" in [row["name"] for row in json.loads(listed.stdout)]
    assert "no_such_module" in listed.stderr and "octosim has a method of that name" in listed.stderr


def test_a_changed_source_is_another_method(installed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    octosim.train(model="lenet5", batch_size=20, steps=1, method="clipped", out=run)
    module = installed / "octosim_clipped" / "__init__.py"
    before = module.read_text()
    try:
        module.write_text(before.replace("share: float = 0.9", "share: float = 0.9  # changed"))
        done = command("verify", str(run))
        assert done.returncode == 1 and "decides.method.plugin.sha256" in done.stdout, done.stdout + done.stderr
        assert re.match(r"different: recorded [0-9a-f]{64}, not replayed\n", done.stdout)
    finally:
        module.write_text(before)


def test_a_run_directory_imports_nothing_from_its_folder(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest names a method whose module lies beside it: it is imported where the user says so, and nowhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(extensions.TRUSTED, "")
    marked = "\nfrom pathlib import Path\nPath('imported').touch()\n"
    (tmp_path / "beside.py").write_text((site / "octosim_clipped" / "__init__.py").read_text() + marked)
    run = tmp_path / "run"
    octosim.train(model="mlp", batch_size=10, steps=1, method="beside:Clipped", out=run)
    (tmp_path / "imported").unlink()
    monkeypatch.setenv(extensions.TRUSTED, "")  # a stranger's process
    monkeypatch.delitem(sys.modules, "beside")
    manifest = train.read_manifest(run)
    readers = [  # what verify, --resume, diff, audit, golden, export and --init read a run with, and reports price it by
        lambda: octosim.open(run).verify(), lambda: train.read_config(run), lambda: train.reopen(run),
        lambda: train.step_of(manifest), lambda: train.step_of({k: v for k, v in manifest.items() if k != "config"}),
    ]  # fmt: skip
    for read in readers:
        with pytest.raises(OctosimError, match="OCTOSIM_PLUGINS=beside"):
            read()
    refused = command("verify", "run", folder=tmp_path)
    assert refused.returncode == 2 and "OCTOSIM_PLUGINS=beside" in refused.stderr and refused.stderr.count("\n") == 1
    assert not (tmp_path / "imported").exists() and "beside" not in sys.modules
    done = command("--plugin", "beside", "verify", "run", folder=tmp_path)
    assert done.returncode == 0 and (tmp_path / "imported").exists(), done.stderr
    (run / "digest.txt").unlink()  # as if it had been stopped
    done = command("train", "--resume", "--out", "run", "--method", "beside:Clipped", folder=tmp_path)
    assert done.returncode == 0 and (run / "digest.txt").exists(), done.stderr


def test_broken_ones_break_nothing(installed: Path) -> None:
    names, broken = methods.available()
    assert "clipped" in names and set(methods.METHODS) < set(names) and set(broken) == {"broken", "octosim", "octo"}
    assert type(methods.make("octo", {})).__module__ == "octosim.methods.octo"
    expected = {"broken": "ModuleNotFoundError", "octosim": "expected a subclass", "clip": "did you mean 'clipped'"}
    for name, sentence in expected.items():
        with pytest.raises(OctosimError, match=sentence):
            methods.make(name, {})


def test_profiles_and_data(installed: Path, tmp_path: Path) -> None:
    from octosim import hardware

    assert hardware.load("my-board").name == "my-board" and hardware.load("pi4").name == "raspberry-pi-4"
    rng = np.random.default_rng(0)
    table = np.c_[np.arange(12) % 2, rng.integers(0, 256, (12, 16))]
    np.savetxt(tmp_path / "mine.columns", table, fmt="%d")
    run = octosim.train(model="mlp", data=str(tmp_path / "mine.columns"), batch_size=4, steps=2, out=tmp_path / "run")
    assert run.verify().equal and run.state.data.train_images.shape == (10, 4, 4, 1)
    assert run.state.data.test_share == 0.2


def test_the_package_passes_its_own_test(installed: Path, tmp_path: Path) -> None:
    test = installed / "package" / "tests" / "test_octosim_clipped.py"
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["octo", "fp32"])
def test_own_methods_pass(name: str, tmp_path: Path) -> None:
    made = check_method(methods.METHODS[name], tmp_path)
    assert {"declaration", "digests", "resume", "price"} <= set(made)
    assert ("sums" in made) == ("overflow" in made) == ("register" in made) == (name == "octo")


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.METHODS)
def test_every_own_method_passes(name: str, tmp_path: Path) -> None:
    assert check_method(methods.METHODS[name], tmp_path)


# ---- methods that must not pass --------------------------------------------------


@dataclass(frozen=True)
class _Quiet(Octo):
    """No word of the parameter."""

    strength: float = 1.0
    name: ClassVar[str] = "quiet"


@dataclass(frozen=True)
class _Careless(Octo):
    """lac, lac_samples, lac_decay, prc, prc_ratio, prc_z, prc_percentile, zero_point, rounding, keep: as octo's."""

    name: ClassVar[str] = "careless"

    def check(self, node: Any, batch: int) -> None:
        pass


@dataclass(frozen=True)
class _Noisy(Octo):
    """lac, lac_samples, lac_decay, prc, prc_ratio, prc_z, prc_percentile, zero_point, rounding, keep: as octo's."""

    name: ClassVar[str] = "noisy"

    def error(self, node: Any, dy: Any, context: Any) -> Any:
        made = super().error(node, dy, context)
        _COUNT[0] += 1
        codes = made.q.copy()
        codes.flat[_COUNT[0] % codes.size] ^= 1
        return core.Tensor(codes, made.s, made.z)


_COUNT = [0]


@pytest.mark.parametrize(
    "cls, sentence",
    [(_Quiet, "lacks 'strength: ...'"), (_Careless, "accepts a layer of"), (_Noisy, "other bits than with")],
)
def test_faulty_methods_fail(cls: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_method(cls, tmp_path)


@pytest.mark.parametrize("name", ["octo", "Clipped", "a b", "-a", "class", "none"])
def test_bad_names(name: str, tmp_path: Path) -> None:
    done = command("new", "method", "--out", str(tmp_path / "x"), "--", name)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "x").exists()


# ---- layers --------------------------------------------------


PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text()


def block(title: str) -> str:
    """The file of this name in docs/python.md."""
    found = re.search(rf'^```\w+ title="{re.escape(title)}"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


SCALE = block("scaling.py")
NET = block("scaled.toml").replace('"scale"', '"KIND"')
OTHERS = """
from octosim.engine.layers import ReLU


class Plain(Scale):
    pass


@dataclass(frozen=True)
class Same(ReLU):
    pass


@dataclass(frozen=True)
class Listed(Scale):
    sizes: list[int] | None = None


@dataclass(frozen=True)
class Idle(Unweighted):
    stem: ClassVar[str] = "idle"
"""
@pytest.fixture
def scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder, the current one, with a layer's module and a model file that names its kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    for variable in (extensions.TRUSTED, graph.plugins.GIVEN):
        monkeypatch.setenv(variable, "")
    (tmp_path / "scaling.py").write_text(SCALE + OTHERS)
    (tmp_path / "net.toml").write_text(NET.replace("KIND", "scale"))
    yield tmp_path
    sys.modules.pop("scaling", None)


def test_a_layer_from_a_model_file(scale: Path) -> None:
    """Trained, verified and priced as the same layer given as an object."""
    graph.plugins.give("scaling:Scale")
    run = octosim.train(model="net.toml", batch_size=10, steps=2, out="run")
    assert run.manifest["decides"]["layers"][1] == {"kind": "scaling:Scale", "by": 0.5} and run.verify().equal
    cost = octosim.cost("net.toml", "pi4", batch_size=10).table
    assert set(cost[cost.layer == "scale1"]["pass"]) == {"forward", "dX"}
    from scaling import Scale

    by_object = octosim.train(model=[Conv2d(4, 3, 3), Scale(0.5), ReLU(), Flatten(), Linear(10)], batch_size=10, steps=2)
    assert by_object.digest == run.digest


@pytest.mark.slow
def test_a_layer_from_training_to_the_report(scale: Path) -> None:
    """A layer in a module beside the model file: trained, verified, resumed, priced, studied, reported."""
    settings = "--model net.toml --batch-size 10".split()
    done = command("train", *settings, "--layer", "scaling:Scale", "--steps", "3", "--out", "run", folder=scale)
    assert done.returncode == 0, done.stderr
    decided = octosim.open("run").manifest["decides"]
    assert decided["layers"][1] == {"kind": "scaling:Scale", "by": 0.5}
    assert decided["layer_plugins"]["scaling:Scale"]["sha256"] == sha256((scale / "scaling.py").read_bytes()).hexdigest()
    assert "scaling" not in sys.modules
    with pytest.raises(OctosimError, match="layer 2: layer scaling:Scale is code .* OCTOSIM_PLUGINS=scaling"):
        octosim.open("run").verify()
    graph.plugins.give("scaling:Scale")
    assert octosim.open("run").verify().equal
    (scale / "st.toml").write_text('[base]\nmodel = "net.toml"\nbatch_size = 10\nsteps = 2\n[[grid]]\nseed = [0, 1]\n')
    made = octosim.study("st.toml", out="study")
    assert list(made.states.values()) == ["finished"] * 2
    assert "device" in made.report("page.md", ["pi4"]).read_text().lower()

    def stop(progress: Any) -> None:
        if progress.step == 1:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        octosim.train(model="net.toml", batch_size=10, steps=3, out="cut", checkpoint_every=1, on_step=stop)
    assert octosim.open("cut").resume().digest == octosim.open("run").digest
    (scale / "scaling.py").write_text(SCALE + OTHERS + "# changed\n")
    done = command("--plugin", "scaling", "verify", "run", folder=scale)
    assert done.returncode == 1 and "decides.layer_plugins.scaling:Scale.sha256" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "path, sentence",
    [("scaling", "--layer takes an import path, module:Class, not 'scaling'"),
     ("scaling:Nothing", "layer scaling:Nothing cannot be imported: AttributeError"),
     ("nowhere_at_all:X", "layer nowhere_at_all:X cannot be imported: ModuleNotFoundError"),
     ("json:JSONDecoder", "layer json:JSONDecoder: expected a subclass of octosim.engine.layers.Layer"),
     ("scaling:Plain", "layer scaling:Plain: Plain must be a frozen dataclass"),
     ("scaling:Same", "layer scaling:Same: octosim has a kind 'relu'; give Same a 'kind' of its own"),
     ("scaling:Listed", "layer scaling:Listed: field 'sizes' of Listed has no rule"),
     ("scaling:Idle", "layer scaling:Idle: Idle has no attribute 'out_shape'")],
)  # fmt: skip
def test_no_layer(path: str, sentence: str, scale: Path) -> None:
    with pytest.raises(OctosimError, match=re.escape(sentence)):
        graph.plugins.give(path)
    assert not os.environ[graph.plugins.GIVEN]


@pytest.mark.parametrize(
    "kind, by, sentence",
    [("scale", "0.5", "layer 2: field 'kind' is 'scale', no kind of layer"),
     ("scaling:Scale", "0.5", "layer 2: layer scaling:Scale is code that is not installed"),
     ("given", "true", "layer 2 .scale.: field 'by' must be a number, not True")],
)  # fmt: skip
def test_model_files_name_layers_that_are_given(kind: str, by: str, sentence: str, scale: Path) -> None:
    if kind == "given":
        graph.plugins.give("scaling:Scale")
    text = NET.replace("KIND", kind.replace("given", "scale")).replace("by = 0.5", f"by = {by}")
    (scale / "net.toml").write_text(text)
    with pytest.raises(OctosimError, match=sentence):
        graph.find("./net.toml")


def test_an_installed_layer_is_known_by_its_entry_point(installed: Path, tmp_path: Path) -> None:
    """By the entry point's name, and broken ones of the group break nothing."""
    (tmp_path / "net.toml").write_text(NET.replace("KIND", "theirs-scale"))
    found = graph.find(str(tmp_path / "net.toml")).layers
    assert [type(layer).__module__ for layer in found][1] == "theirs.scaling"
    (tmp_path / "net.toml").write_text(NET.replace("KIND", "gone"))
    with pytest.raises(OctosimError, match=r"octosim\.layers gone \(nowhere:X\) cannot be imported: ModuleNotFoundError"):
        graph.find(str(tmp_path / "net.toml"))
    assert octosim.cost("mlp", "pi4", batch_size=4).total["time_s"] > 0


def test_hooks_by_their_names_in_earlier_releases() -> None:
    class Old(methods.METHODS["fp32"]):  # type: ignore[misc]
        compact = True

        def meet(self, node: Any, a: Any, b: Any) -> Any:
            return "sum"

    assert Old.saves_int8 is True and Old().accumulate_grad(None, 1, 2) == "sum"


# ---- layers and methods that are wrong --------------------------------------------------


@dataclass(frozen=True)
class Doubled(Unweighted):
    """x times 2; wrong in one way each."""

    wrong: str = ""
    stem: ClassVar[str] = "doubled"

    def out_shape(self, in_shape: tuple[int, ...]) -> Any:
        return list(in_shape) if self.wrong == "list" else in_shape

    def init(self, node: Any, method: Any, seed: int | None) -> None:
        if self.wrong in ("parameter", "no gradient"):
            node.params["p"] = np.ones(2, np.float64 if self.wrong == "parameter" else np.float32)

    def _twice(self, node: Any, x: np.ndarray) -> np.ndarray:
        if self.wrong == "undeclared":
            return x * 2
        out = node.buffer(x.shape, np.float32)
        core.python("twice", lambda x, out: np.multiply(x, 2, out=out), [x], [out])
        return out

    def forward(self, node: Any, x: np.ndarray, method: Any, context: Any) -> Any:
        y = self._twice(node, x)
        return {"type": y.astype(np.float64), "shape": y[:, 1:], "none": None}.get(self.wrong, y)

    def input_grad(self, node: Any, dy: np.ndarray, method: Any, context: Any) -> Any:
        dx = self._twice(node, dy)
        return {"gradient": dx[:, ::-1], "no dX": None}.get(self.wrong, dx)


@dataclass(frozen=True)
class Held(Octo):
    """Weights within a limit, in NumPy that is not declared.

    limit: of weights.
    """

    limit: float = 0.05
    name: ClassVar[str] = "held"

    def update(self, node: Any, key: str, lr: Any, rule: Any, context: Any) -> None:
        rule(lr)
        np.clip(node.params[key], -self.limit, self.limit, out=node.params[key])


def _train(layer: Any, **more: Any) -> Any:
    x, y = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8), np.arange(20) % 2
    model = [Conv2d(2, 3), layer, ReLU(), Flatten(), Linear(2)]
    return octosim.train(model=model, data=(x, y, x, y), batch_size=10, steps=4, **more)


@pytest.mark.parametrize("wrong, sentence", [
    ("list", "out_shape gave .*expected a tuple"), ("parameter", "parameter 'p' is float64"), ("type", "forward gave float64"),
    ("shape", r"forward gave float32 \(10, 5, 6, 2\), not contiguous, .* of shape \(10, 6, 6, 2\)"),
    ("none", "forward gave None"),
    ("gradient", "input_grad gave .* not contiguous"), ("no dX", "input_grad gave None, .* of shape \\(10, 6, 6, 2\\)"),
    ("no gradient", r"set no node.grads\['p'\]"),
])  # fmt: skip
def test_a_wrong_layer_is_told_by_its_name(wrong: str, sentence: str) -> None:
    with pytest.raises(OctosimError, match=f"doubled1.*{sentence}"):
        _train(Doubled(wrong))


def test_numpy_that_is_not_declared_is_found_out(tmp_path: Path) -> None:
    assert _train(Doubled()).verify().equal
    with pytest.raises(OctosimError, match=r"step 3 has other bits where the core replays it, in conv1.*Doubled must declare"):
        _train(Doubled("undeclared"))
    with pytest.raises(OctosimError, match=r"step 3 has other bits .*method .*:Held must declare"):
        _train(ReLU(), method=Held(), out=tmp_path / "run")
    assert "must declare" in json.loads((tmp_path / "run" / "failure.json").read_text())["reason"]


@dataclass(frozen=True)
class Pixels(Weighted):
    """A linear layer of each pixel, with the defaults of its base."""

    units: int = 3
    stem: ClassVar[str] = "pixels"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*in_shape[:-1], self.units)

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.units, in_shape[-1]

    def product(self, node: Any, batch: int) -> Any:
        return node.product_hook(FullProduct(batch * node.in_shape[0] * node.in_shape[1], node.in_shape[-1], self.units))


@dataclass(frozen=True)
class NoProduct(Weighted):
    """Lacks its product."""

    stem: ClassVar[str] = "noproduct"

    def out_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return in_shape

    def weight_shape(self, in_shape: tuple[int, ...]) -> tuple[int, ...]:
        return 1, 1


def test_a_weighted_layer_of_ones_own(tmp_path: Path) -> None:
    run = _train(Pixels(), out=tmp_path / "run")
    done = golden.golden(run.folder, 2, None, tmp_path / "golden")
    assert "pixels" in str(done) or any("pixels1" in path.name for path in (tmp_path / "golden").iterdir())
    with pytest.raises(OctosimError, match="channels cannot choose channels of layers of the kind 'pixels'"):
        _train(Pixels(), channels=["pixels1=0.5"])
    with pytest.raises(OctosimError, match="NoProduct has no method 'product'"):
        _train(NoProduct())
