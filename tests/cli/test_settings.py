"""The settings of a run, defined once: options of the command line, keys of a study, arguments of Config."""

from __future__ import annotations

import dataclasses

import pytest
import typer

from octosim import study, train
from octosim.cli import main
from octosim.cli.app import app
from octosim.errors import ArgumentError, OctosimError
from octosim.settings import Settings, spelling

FIELDS = dataclasses.fields(Settings)
RANGED = [each for each in FIELDS if each.metadata["least"] is not None or each.metadata["positive"]]


def test_every_setting_is_an_option_with_its_help() -> None:
    options = {each.name: each for each in typer.main.get_command(app).commands["train"].params}  # type: ignore[attr-defined]
    for field in FIELDS:
        option = options[field.name]
        assert spelling(field.name) in option.opts and option.rich_help_panel == field.metadata["panel"], field.name
        assert option.help == field.metadata["help"] or field.name == "parameters"
        assert not field.metadata["help"].startswith("Of ") and field.metadata["help"].endswith((".", "..."))


def test_config_and_studies_have_these_settings_and_no_others() -> None:
    assert [each.name for each in dataclasses.fields(train.Config)] == [each.name for each in FIELDS]
    assert set(study.study._Base.model_fields) == {each.name for each in FIELDS} | {"recipe"}


@pytest.mark.parametrize("field", RANGED, ids=lambda field: field.name)
def test_a_number_out_of_range_is_told_by_argument_and_by_option(
    field: dataclasses.Field, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = field.metadata["below"] or -1
    with pytest.raises(ArgumentError, match=f"^{field.name} must be .*, not {wrong}"):
        train.Config(**{field.name: wrong}).check_ranges()
    monkeypatch.setattr("sys.argv", ["octosim", "train", spelling(field.name), str(wrong)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and capsys.readouterr().err.startswith(f"octosim: {spelling(field.name)} must be ")


def test_a_sentence_with_braces_of_others() -> None:
    error = ArgumentError("{batch_size} 3 of '{x y}' and {0}")
    assert str(error) == "batch_size 3 of '{x y}' and {0}" and error.spelled(spelling) == "--batch-size 3 of '{x y}' and {0}"
    assert isinstance(error, OctosimError)
