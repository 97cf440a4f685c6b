"""`octosim profiles validate --host`: steps on this machine against their prices."""

from __future__ import annotations

import pytest
from kit.cli import octosim

from octosim import core, hardware
from octosim.bench import calibrate, validation
from octosim.errors import OctosimError


@pytest.fixture(scope="module")
def device() -> hardware.Device:
    data = calibrate.calibrate(probes=calibrate.PROBES[7:8], rounds=1, threads=(1,))
    return calibrate.load_check(calibrate.toml(data))


def test_rows(device: hardware.Device) -> None:
    """A probe of fully connected layers alone: what convolutional networks call beside them has no price, and is named."""
    threads, told = core.threads(), []
    rows = validation.host(device, ["octo", "niti"], ["mobilenet"], [4], progress=told.append)
    assert core.threads() == threads and told == pytest.approx([(i + 1) / 6 for i in range(2 * validation.ROUNDS)])
    assert [(row["network"], row["method"]) for row in rows] == [("mobilenet", "octo"), ("mobilenet", "niti")]
    for row in rows:
        assert row["measured"] > 0 and row["predicted"] > 0
        assert row["error"] == row["predicted"] / row["measured"] - 1
    assert "batchnorm_forward" in rows[0]["unpriced"] and "pixel_sums_s8" in rows[1]["unpriced"]
    assert "gemm_s8" not in rows[0]["unpriced"].split(", ")


def test_refusals(device: hardware.Device) -> None:
    with pytest.raises(OctosimError, match="unknown method 'octa'"):
        validation.host(device, ["octa"])
    with pytest.raises(OctosimError, match="'resnet18' is none of octosim's stacks"):
        validation.host(device, ["octo"], ["resnet18"])
    with pytest.raises(OctosimError, match="was not calibrated"):
        validation.host(hardware.load("pi4"), ["octo"])
    for arguments in (("--method", "octo"), ("--threads", "2"), ("--host", "--device", "x"), ("--host", "--profile", "pi4")):
        done = octosim("profiles", "validate", *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr
