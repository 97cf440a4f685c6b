"""The command line on a hostile host: names that are markup or control characters, outputs that fail, Ctrl-C at any time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octosim import cli, hardware
from octosim.cli import terminal

NAMES = {
    "closing markup": "a[/b]",
    "markup": "[bold red]x[/] [@click=exit()]",
    "link": "[link=http:/example.org]x[/link]",
    "emoji code": ":smile: :x:",
    "emoji": "\U0001f600\u2603\u00fc",
    "escape sequence": "x\x1b[31m\x1b]0;title\x07",
    "c1 control": "x\x9b31m\x85",
    "line ends": "a\nb\rc\u2028d",
    "right to left": "x\u202etxt.exe",
    "not utf-8": os.fsdecode(b"x\xff\xfe"),
    "quotes": "it's \"$HOME\" `x` \\n",
    "percent and braces": "%s {x} {0!r} %(a)d",
    "long": "n" * 200,
}
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\ud800-\udfff]")


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[int, str]:
    """Exit code, and both outputs without white space, of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["octosim", *map(str, arguments)])
    code = cli._run()
    done = capsys.readouterr()
    assert not OBEYED.search(done.out + done.err)
    return code, "".join((done.out + done.err).split())


def shown(name: str) -> str:
    return "".join(terminal.plain(name).split())


@pytest.fixture(params=NAMES.values(), ids=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_command_shows_an_unknown_name_as_it_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("methods", "show", name), ("data", "fetch", name), ("train", "--data", name), ("train", "--method", name),
        ("train", "--model", name), ("train", "--optimizer", name), ("train", "--steps", name), ("train", "--augment", name),
        ("cost", "--profile", name), ("cost", "--model", f"{name}.toml"), ("cost", "--image", name), ("verify", name),
        ("cost", "--model", f"{name}.onnx"), ("profiles", "check", name), ("profiles", "show", name), ("study", name),
        ("study", f"{name}.toml"), ("report", name), ("golden", name), ("audit", name), ("diff", name, name),
        ("profiles", "calibrate", "--profile", "pi4", "--from", name),
    ):  # fmt: skip
        code, said = call(capsys, monkeypatch, *arguments)
        seen = "".join(terminal.plain(" ".join(name.split())).split())  # a sentence is on one line
        assert code == 2, (arguments, said)
        assert said.startswith("octosim:") and seen[:12] in said, (arguments, said)
    assert call(capsys, monkeypatch, name)[0] == 2


def test_files_and_titles_of_any_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomli_w

    monkeypatch.chdir(tmp_path)
    title = name.encode("utf-8", "replace").decode()
    profile = Path(f"{name[:100]}.toml")
    device = hardware.load("pi4").model_dump(mode="json", exclude_none=True) | {"title": title}
    profile.parent.mkdir(parents=True, exist_ok=True)
    profile.write_text(tomli_w.dumps(device), encoding="utf-8")
    code, said = call(capsys, monkeypatch, "profiles", "check", profile)
    assert code == 0 and shown(f"{profile}: a good profile of {title}") in said
    code, said = call(capsys, monkeypatch, "cost", "--profile", profile, "--model", "mlp")
    assert code == 0 and shown(title) in said
    study = Path("study.toml")
    study.write_text(tomli_w.dumps({"title": title, "base": {"model": "mlp", "steps": 1}, "grid": [{"seed": [0, 1]}]}))
    code, said = call(capsys, monkeypatch, "study", study, "--dry-run")
    assert code == 0 and said == "seed=0seed=1"


def test_run_directories_of_any_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs", name[:100])
    small = ("--model", "mlp", "--batch-size", "10", "--steps", "1", "--threads", "1", "--out", folder)
    code, said = call(capsys, monkeypatch, "train", *small)
    assert code == 0 and shown(f"run: {folder}") in said and "after1step" in said
    code, said = call(capsys, monkeypatch, "train", "--resume", "--out", folder)
    assert code == 0 and shown(f"{folder} is finished already") in said
    code, said = call(capsys, monkeypatch, "report", folder, f"nothere{name[:100]}", "-o", "page.html")
    assert code == 0 and "1run," in said and shown(f"left out nothere{name[:100]}") in said


def test_names_of_onnx_nodes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    name = name.encode("utf-8", "replace").decode()
    x, y = (onnx.helper.make_tensor_value_info(n, 1, ["N", 8]) for n in "xy")
    weights = onnx.helper.make_tensor("w", 1, [8, 8], [0.0] * 64)
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name=name)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y], [weights])), tmp_path / "m.onnx")
    code, said = call(capsys, monkeypatch, "cost", "--model", tmp_path / "m.onnx", "--profile", "pi4", "--inference")
    assert code == 0 and shown(name)[:20] in said


def test_a_hint_can_be_typed(name: str) -> None:
    word = terminal.shell_word(name)
    assert not OBEYED.search(word) and "\n" not in word
    assert subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True).stdout == os.fsencode(name)


def test_a_long_sentence_is_cut_in_its_middle() -> None:
    text = terminal.sentence_text("begin " + "x" * 100_000 + " end")
    assert len(text) <= terminal.LONGEST and text.startswith("begin x") and text.endswith("x end")


# ---- outputs --------------------------------------------------

COST = ("cost", "--model", "mlp", "--profile", "pi4")


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The shell's line, in which $O is octosim."""
    command = f"set -o pipefail; O='{sys.executable} -m octosim.cli'; {line}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ | variables, timeout=120)


@pytest.mark.parametrize("arguments", [COST, ("--version",), ("cost", "--help")])
@pytest.mark.parametrize(
    ("output", "code", "sentence"),
    [(">&-", 0, ""), (">&- 2>&- <&-", 0, ""), (">/dev/full", 2, "octosim: standard output cannot"), ("| true", 141, "")],
)
def test_standard_output_that_is_closed_full_or_left(arguments: tuple[str, ...], output: str, code: int, sentence: str) -> None:
    if output == "| true":
        output = "| (exec <&-; sleep 2)"
    done = shell(f"$O {' '.join(arguments)} {output}")
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(sentence) and done.stderr.count("\n") == bool(sentence)


def test_errors_that_cannot_be_told() -> None:
    for output in ("2>&-", "2>/dev/full", "2>&1 | (exec <&-; sleep 2)"):
        assert shell(f"$O trian {output}").returncode == 2


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    train = "train --model mlp --batch-size 10 --steps 1 --out run --count-overflow 1"
    done = shell(f"cd {tmp_path}; $O {train} >&- 2>&-; $O verify run")
    assert done.returncode == 0 and done.stdout.startswith("equal")


@pytest.mark.parametrize("encoding", ["ascii", "cp437"])
def test_encodings_of_the_output(encoding: str) -> None:
    done = shell("$O methods show octo > /dev/null && $O verify $'\\u2603\\xff'", PYTHONIOENCODING=encoding)
    assert done.returncode == 2 and "Traceback" not in done.stderr


# ---- Ctrl-C --------------------------------------------------


def test_ctrl_c_at_any_time_is_quiet(tmp_path: Path) -> None:
    code = "import os; from octosim import cli; run = cli._run; cli._run = lambda: os.write(1, b'.') and run(); cli.main()"
    command = [sys.executable, "-c", code, "train", "--model", "mlp", "--steps", "100000", "--threads", "1", "--out"]
    for number in range(12):
        process = subprocess.Popen([*command, str(tmp_path / str(number))], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout and process.stdout.read(1) == b"."
        time.sleep(0.12 * number)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1].decode()
        assert process.returncode == 130 and "Traceback" not in said, (number, said)


@pytest.mark.parametrize("inside", ["try: time.sleep(60)\n        except BaseException: time.sleep(60)", "Deaf()"])
def test_ctrl_c_is_not_swallowed(inside: str) -> None:
    """By a library that catches everything, and by a destructor, whose exceptions Python ignores."""
    code = f"""
import sys, time
from octosim import cli
class Deaf:
    def __del__(self):
        print(".", flush=True)
        time.sleep(60)
def run():
    while True:
        print(".", flush=True)
        {inside}
cli._run = run
cli.main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stdout.read(1) == b"."
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == b"" and process.returncode == 130


def test_ctrl_c_leaves_no_temporary_file(tmp_path: Path) -> None:
    code = """
import os, time
from pathlib import Path
from octosim import cli, files
os.fsync = lambda fd: print(".", flush=True) or time.sleep(60)
cli._run = lambda: files.write_atomic(Path("x.json"), b"1")
cli.main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout and process.stdout.read(1) == b"." and len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == b"" and process.returncode == 130 and not list(tmp_path.iterdir())


def test_ctrl_c_that_the_shell_ignores_stays_ignored() -> None:
    code = "import signal, sys; from octosim import cli; sys.argv = ['octosim', '--version']; cli.main()"
    before = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    after = "import atexit, signal; atexit.register(lambda: print(signal.getsignal(signal.SIGINT)))"
    done = subprocess.run([sys.executable, "-c", f"{before}\n{after}\n{code}"], capture_output=True, text=True)
    assert str(signal.SIG_IGN) in done.stdout


# ---- mistakes --------------------------------------------------

MISTAKES = [
    (("train", "--data", "CIFAR11"), "did you mean 'cifar10'?"),
    (("train", "--data", "Fashion_MNIST"), "did you mean 'fashion-mnist'?"),
    (("train", "--model", "LeNet-5"), "did you mean 'lenet5'?"),
    (("train", "--method", "OCT"), "did you mean 'octo'?"),
    (("train", "--accumulator", "16"), "did you mean 'acc16'?"),
    (("train", "--model", "net.ONNX"), "net.ONNX: cannot be read (No such file"),
    (("cost", "--model", "net.ONNX"), "net.ONNX: no such file"),
    (("train", "--set", "foo=1"), "no parameter 'foo' (known: keep, lac,"),
    (("train", "--method", "fp32", "--lac", "channel"), "no parameter 'lac'; it has none"),
    (("train", "--epochs", "1.5"), "--epochs must be a whole number, not '1.5'; see octosim train --help"),
    (("train", "--lr", "fast"), "--lr must be a number, not 'fast'"),
    (("train", "--steps"), "--steps"),
    (("cost", "--profile", "nothing"), "octosim profiles list prints the"),
    (("cost", "--profile", "rpi4b"), "did you mean"),
    (("cost", "--image", "0x28x1"), "--image takes sizes in 1 .. 16384"),
    (("cost", "--image", "28x28x99999999999"), "--image takes sizes in 1 .. 16384"),
    (("report", "nothere"), "nothing to report on: nothere: no such file or folder"),
    (("report", "x.json", "-o", "x.pdf"), "--out x.pdf: the name must end in .html or .htm or .md"),
    (("report", "x.json", "-o", "none/x.md"), "there is no folder none to write in"),
    (("report", "x.json", "-o", "."), "is a folder"),
    (("cost", "--compare", "pi5", "--plot", "bars.gif"), "--plot bars.gif: the name must end in .png or .svg"),
    (("cost", "--roofline", "roof"), "--roofline roof: the name must end in .png or .svg"),
    (("bench", "--out", "none/x.json"), "there is no folder none to write in"),
    (("bench", "--pyperf", "none/x.json"), "there is no folder none to write in"),
    (("bench", "--kernels", "--plot", "x.bmp"), "must end in .png or .svg"),
    (("bench", "--out", "/proc/x.json"), "/proc"),
    (("profiles", "calibrate", "-o", "none/x.toml"), "there is no folder none to write in"),
    (("profiles", "check", "wrong.toml"), "unknown field a; unknown field b; unknown field c"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_mistakes_are_one_helpful_sentence(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomli_w

    monkeypatch.chdir(tmp_path)
    device = hardware.load("pi4").model_dump(mode="json", exclude_none=True) | dict.fromkeys("abc", 1)
    Path("wrong.toml").write_text(tomli_w.dumps(device))
    monkeypatch.setattr(sys, "argv", ["octosim", *arguments])
    started = time.perf_counter()
    assert cli._run() == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out, said.err
    assert time.perf_counter() - started < 30  # before any measurement


def test_lists_have_a_name_of_their_own(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(capsys, monkeypatch, "methods", "list") == call(capsys, monkeypatch, "methods")


def test_the_batch_normalization_of_a_predicted_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("cost", "--model", "vgg11", "--image", "32x32x3", "--method", "niti")
    code, said = call(capsys, monkeypatch, *arguments)
    assert code == 2 and "--no-batchnorm" in said
    code, said = call(capsys, monkeypatch, *arguments, "--no-batchnorm")
    assert code == 0 and "niti" in said


def test_more_threads_than_processors_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from octosim import core

    threads = core.threads()
    try:
        code, said = call(capsys, monkeypatch, "verify", tmp_path / "none", "--threads", "1000")
    finally:
        core.set_threads(threads)
    assert code == 2 and "--threads1000:thisprocessmayuse" in said
