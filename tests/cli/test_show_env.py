"""`octosim show-env`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from octosim import core, limits
from octosim.cli import show_env
from octosim.cli.app import app
from octosim.hardware import state


def test_show_env_says_what_is_and_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OCTOSIM_DATA", str(tmp_path))
    monkeypatch.setattr(show_env, "OPTIONAL", {"no-such-package": "peers"})
    before = core.threads()
    done = CliRunner().invoke(app, ["show-env", "--json"])
    assert done.exit_code == 0 and core.threads() == before
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["cpu"]["isas"] == core.isas() and found["cpu"]["isa"] == core.isa() and found["threads"]["count"] == before
    assert found["packages"]["no-such-package"] is None and found["packages"]["numpy"]
    assert found["variables"]["OMP_NUM_THREADS"] == "3" and found["threads"]["from"] == "OMP_NUM_THREADS=3"
    assert {"limits", "state", "data", "octosim", "python"} <= set(found)
    monkeypatch.setattr(limits, "quota", lambda: 0.5)
    monkeypatch.setattr(limits, "memory", lambda: 1 << 30)
    monkeypatch.setattr(state, "read", lambda: host)
    host = {"clock_ghz": [0.6, 1.5], "clock_max_ghz": 1.8, "governors": ["ondemand"], "temperature_c": 84.1, "throttled": 4}
    shown = CliRunner().invoke(app, ["show-env"]).stdout
    for text in ("pip install 'octosim[peers]'", "less than the threads: pass --threads", "1 GiB", "0.60 .. 1.50 GHz", "84 C",
                 "throttled", "ondemand", "1.80 GHz", "not told", "octosim data fetch mnist"):  # fmt: skip
        assert text in shown, text
    host = {"throttle_events": 7}
    assert "7 times since the start" in CliRunner().invoke(app, ["show-env"]).stdout
