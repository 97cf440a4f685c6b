"""A short form of the campaigns of campaign.py; the long ones are run by hand, see docs/reliability.md."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shim preloads into Linux's libc")


def campaign(*arguments: str) -> None:
    program = Path(__file__).parent / "campaign.py"
    command = [sys.executable, str(program), *arguments, "--seed", "20261128", "--hang", "90"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_failing_operations_of_train() -> None:
    campaign("operations", "--job", "train", "--tries", "16")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tries"), [("kills", 24), ("operations", 120), ("damage", 300), ("race", 3), ("threads", 20)])
def test_campaign(name: str, tries: int) -> None:
    campaign(name, "--tries", str(tries))
