"""TOML and CSV as users' programs write them, and what is none: read, or refused with a sentence."""

from __future__ import annotations

import gzip
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octosim import graph, hardware, study
from octosim.errors import OctosimError
from octosim.textfile import TOML_BYTES, parse_toml, read_csv, read_toml

TOML = "# \u00f6 \u2603\nname = 'x'\n[[list]]\nvalue = 1\n"
CSV = "network,value\na\u00f6,1\n\nb,2\n"
ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda t: t.encode(),
    "byte order mark": lambda t: b"\xef\xbb\xbf" + t.encode(),
    "CRLF": lambda t: t.replace("\n", "\r\n").encode(),
    "CR": lambda t: t.replace("\n", "\r").encode(),
    "byte order mark, CRLF": lambda t: b"\xef\xbb\xbf" + t.replace("\n", "\r\n").encode(),
    "no last line end": lambda t: t.rstrip("\n").encode(),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_any_line_ends_and_a_mark_are_read(encode: Callable[[str], bytes], tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(encode(TOML))
    (tmp_path / "x.csv").write_bytes(encode(CSV))
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(encode(CSV)))
    assert read_toml(tmp_path / "x.toml") == tomllib.loads(TOML)
    for name in ("x.csv", "x.csv.gz"):
        rows = read_csv(tmp_path / name, ("network", "value"))
        assert [row.cells for row in rows] == [{"network": "a\u00f6", "value": "1"}, {"network": "b", "value": "2"}]


BAD_TOML: dict[str, tuple[bytes, str]] = {
    "UTF-16": (TOML.encode("utf-16"), "UTF-16; save it as UTF-8"),
    "Latin-1": (TOML.replace("\u2603", "").encode("latin-1"), "line 1: not a text file in UTF-8"),
    "deep lists": (b"x = " + b"[" * 100_000, "too deeply"),
    "deep tables": (b".".join([b"a"] * 60) + b" = 1", "too deeply"),
    "a key of a million parts": (b"a." * 1_000_000 + b"a = 1", "too deeply"),  # which would take hours
    "a table of as many": (b"x = 1\n[[ " + b"'a' . " * 500_000 + b"a ]]", "too deeply"),
    "in a table in a line": (b"x = { y = 1, " + b'"a".b.' * 500_000 + b"a = 1 }", "too deeply"),
    "deep closed": (b"x = " + b"[" * 60 + b"]" * 60, "too deeply"),
    "a long integer": (b"x = " + b"1" * 10_000, "not valid TOML"),
    "an integer of 65 bits": (b"x = 18446744073709551616", "does not fit in 64 bits"),
    "many values": (b"x = [" + b"1," * 600_000 + b"]", "500,000 values"),
    "too long": (b"#" * (TOML_BYTES + 1), "longer than 4 MiB"),
    "NUL": (b"x = '\0'", "not valid TOML"),
    "binary": (bytes(range(256)), "not"),
}


@pytest.mark.parametrize(("content", "words"), BAD_TOML.values(), ids=BAD_TOML)
@pytest.mark.parametrize("read", [read_toml, hardware.check, study.read, lambda path: graph.find(str(path))])
def test_no_toml_is_one_sentence(read: Callable[[Path], Any], content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(OctosimError) as caught:
        read(path)
    assert str(path) in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize("read", [read_toml, hardware.check, study.read, lambda path: graph.find(str(path))])
def test_what_is_no_file(read: Callable[[Path], Any], tmp_path: Path) -> None:
    for name in ("none.toml", ".", "a\0b.toml", "x" * 300 + ".toml"):
        with pytest.raises(OctosimError):
            read(tmp_path / name)
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    with pytest.raises(OctosimError, match="longer than"):
        read(tmp_path / "zero.toml")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    for read in (read_toml, lambda p: read_csv(p, ("a",))):
        try:
            read(path)
        except OctosimError as error:
            assert str(path) in str(error)


BAD_CSV = {
    "empty": ("", "empty, expected a CSV with the columns network, value"),
    "blank lines": ("\n\n", "empty"),
    "short row": ("network,value,unit\na,1\n", "line 2: 2 cells, expected 3"),
    "long row": ("network,value\na,1\nb,2,3\n", "line 3: 3 cells, expected 2"),
    "no column": ("network,time\na,1\n", "no column value"),
    "semicolons": ("network;value\na;1\n", "separated by semicolons"),
    "tabs": ("network\tvalue\na\t1\n", "separated by semicolons or tabs"),
    "column twice": ("network,value,value\na,1,2\n", "the column value is there twice"),
    "open quote": ('network,value\n"a,1\n', "not valid CSV"),
    "a huge cell": ("network,value\n" + "x" * 200_000 + ",1\n", "not valid CSV"),
}


@pytest.mark.parametrize(("text", "words"), BAD_CSV.values(), ids=BAD_CSV)
def test_no_csv_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(OctosimError, match=words):
        read_csv(path, ("value", "network"))


@pytest.mark.parametrize("cell", ["nan", "inf", "-1", "0", "1e999", "", "x", '"1,5"', "0x10", "1" * 400])
def test_cells_that_are_no_times(cell: str, tmp_path: Path) -> None:
    from octosim.cost.fit import measurements

    path = tmp_path / "x.csv"
    path.write_text(f"network,precision,threads,value\nnet,int8,1,{cell}\n")
    with pytest.raises(OctosimError, match="line 2: value is .* expected a time above zero" + "; decimals" * ("," in cell)):
        measurements(path)
    if not cell:  # no number of threads: all
        return
    path.write_text(f"network,precision,threads,value\nnet,int8,{cell},1\n")
    with pytest.raises(OctosimError, match="line 2: threads is"):
        measurements(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(b"\0" * (1 << 20))
    with pytest.raises(OctosimError, match="longer than 64 MiB"):
        read_csv(path, ("a",))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OctosimError, match="cannot be read|longer"):
        read_csv(path, ("a",))


def test_a_grid_is_counted_before_it_is_expanded(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    lists = "".join(f"{key} = {list(range(1, 1001))}\n" for key in ("seed", "batch_size", "steps"))
    path.write_text(f"[[grid]]\n{lists}")
    with pytest.raises(OctosimError, match="1,000,000,000 rows, expected at most 10,000"):
        study.rows(study.read(path), path)


def test_parse_names_the_place() -> None:
    with pytest.raises(OctosimError, match="^manifest: not valid TOML"):
        parse_toml("x = ", "manifest")
