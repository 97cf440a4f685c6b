"""A short form of the campaigns of campaign.py; the long ones are run by hand, see docs/reliability.md."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the shim preloads into Linux's libc"),
]


@pytest.mark.parametrize("arguments", [
    ("kills", "--tries", "12"), ("operations", "--job", "train", "--every", "8"),
    ("operations", "--job", "golden", "--every", "16"),
    ("operations", "--job", "report", "--every", "2"), ("operations", "--job", "study", "--every", "40"),
    ("damage", "--tries", "96"), ("race", "--tries", "3"),
], ids=" ".join)  # fmt: skip
def test_campaign(arguments):
    program = Path(__file__).parent / "campaign.py"
    command = [sys.executable, str(program), *arguments, "--seed", "20261128", "--hang", "90"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
