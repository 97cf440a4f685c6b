"""axe-core's rules of accessibility on a page in headless Chromium."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from kit.browser import CHROMIUM, Browser

WIDTHS = (390, 768, 1280, 1920)
SCHEMES = ("light", "dark")
RUN = """window.told = null; axe.run().then(r => { window.told = JSON.stringify(r.violations.map(
    v => v.id + ': ' + v.nodes.map(n => n.html.slice(0, 200) + ' ' + n.failureSummary).slice(0, 3).join('; '))) }); 1"""


def rules() -> str:
    """axe-core's own source; skips the test where it or Chromium is not installed."""
    found = find_spec("axe_core_python")
    if found is None or not found.origin or not CHROMIUM.exists():
        pytest.skip("needs axe-core-python and Chromium")
    return (Path(found.origin).parent / "axe.min.js").read_text()


def show(browser: Browser, url: str, width: int, scheme: str, ready: str = "document.readyState === 'complete'") -> None:
    """Opens a page as someone with this window and this setting sees it."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", media="", features=features)
    browser.open(url, width, 844 if width < 600 else 1080)
    browser.until(ready, 60)


def violations(browser: Browser, source: str) -> list[str]:
    """What axe-core says against the page that is shown, a line a rule, with the first elements."""
    browser.value(source + ";1")
    browser.value(RUN)
    browser.until("window.told !== null", 240)
    told: list[str] = json.loads(browser.value("window.told"))
    return told
