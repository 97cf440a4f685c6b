"""The documentation: every command is one that octosim takes, the walks run, the site builds and loads nothing from outside."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from kit import axe, reader

ROOT = reader.ROOT
COMMANDS = sorted({command for page in reader.PAGES + reader.WALKS for command in reader.commands(page)})
QUICK = ("tutorial", "mine", "vectors")
"""Walks that every test run reads."""


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_every_extra_is_in_the_tables(page: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"^\| `(\w+)` \|", (ROOT / page).read_text(), re.MULTILINE)) == set(extras)


def test_every_command_is_taken() -> None:
    assert len(COMMANDS) > 150
    for command in COMMANDS:
        reader.parse(command)


@pytest.mark.parametrize(
    "command, words",
    [("octosim trian --model lenet5", "no command"), ("octosim train --modle lenet5", "--modle"),
     ("octosim train --steps many", "many"), ("octosim cost --plot", None)],
)  # fmt: skip
def test_the_parser_refuses(command: str, words: str | None) -> None:
    if words is None:
        reader.parse(command)
        return
    with pytest.raises(AssertionError, match=words):
        reader.parse(command)


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=[] if p.stem in QUICK else [pytest.mark.slow]) for p in reader.WALKS]
)
def test_a_walk_runs(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert reader.walk(page, tmp_path)
    shown = reader.pictures(page)
    assert shown or page.stem == "index", f"{page.name} shows no picture"
    for picture in shown:
        assert (tmp_path / picture).stat().st_size > 1000, f"no command of {page.name} writes {picture}"
        assert (page.parent / picture).stat().st_size < 100_000


@pytest.mark.parametrize("name, picture", [("pays", "pays.svg"), ("chips", "roofline.svg")])
def test_predicted_pictures_are_todays(name: str, picture: str, tmp_path: Path) -> None:
    """The cost model moves without the pictures: their words and figures are drawn again, which takes no training."""
    pytest.importorskip("matplotlib")
    (page,) = [walk for walk in reader.WALKS if walk.stem == name]
    (line,) = [line for block in reader.blocks(page) for line in reader.lines(block.text) if line.endswith(picture)]
    with reader.inside(tmp_path):
        code, said = reader.octosim(line)
    assert code == 0, said

    def words(path: Path) -> list[str]:
        return re.findall(r">([^<>]+)</text>", path.read_text())

    assert len(words(tmp_path / picture)) > 10
    assert words(tmp_path / picture) == words(page.parent / picture), f"python tools/pictures.py {name}"


def test_reader(tmp_path: Path) -> None:
    """A page whose command fails is told with its sentence; files are written, remarks left out, lines joined."""
    page = tmp_path / "page.md"
    page.write_text(
        '```toml title="a/x.toml"\nepochs = 9\nbatch_size = 50\n```\n\n```\noctosim methods show octo      a remark\n'
        "octosim cost \\\n    --model nothing\n```\n\n```sh\npip install nothing\n```\nand `octosim data list`"
    )
    assert reader.commands(page) == ["octosim cost --model nothing", "octosim data list", "octosim methods show octo"]
    with pytest.raises(AssertionError, match="page.md: octosim cost --model nothing\noctosim: .*nothing"):
        reader.walk(page, tmp_path)
    assert (tmp_path / "a" / "x.toml").read_text() == "steps = 4\nbatch_size = 20\n"


# ---- the site --------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it: strictly, so that a broken link ends the build."""
    for name in ("mkdocs", "material", "nbconvert"):
        pytest.importorskip(name, reason="needs the extra 'docs'")
    out = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", str(ROOT / "mkdocs.yml"), "-d", str(out)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 35
    for page in pages:
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text()):
            address = re.search(r"(?:src|href)=[\"']?(https?:[^\"' >]*)", tag)
            assert not address or 'rel="canonical"' in tag, f"{page.relative_to(site)}: {tag}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?https?:", sheet.read_text()), sheet


@pytest.mark.slow
def test_generated_pages_have_what_the_code_has(site: Path) -> None:
    from octosim import settings
    from octosim.methods import METHODS

    def text(name: str) -> str:
        return re.sub(r"<[^>]+>", " ", (site / "reference" / f"{name}.html").read_text())

    assert all(settings.spelling(name) in text("cli") for name in settings.kinds())
    assert all(name in text("settings") for name in settings.kinds())
    assert all(name in text("status") for name in METHODS)
    assert all(name in text("api") for name in ("octosim.train", "Run.verify", "octosim.torch.convert", "octosim.core.gemm"))
    assert all(name in text("profile") for name in ("macs_per_clock", "bandwidth_sustained_gb_s"))


CUT = """[...document.querySelectorAll('.md-content table, .md-content pre, .md-content img')].filter(e => {
    const seen = p => p.getBoundingClientRect().right <= innerWidth + 1
    const free = p => ['auto', 'scroll'].includes(getComputedStyle(p).overflowX)
    const scrolls = p => p && (free(p) && seen(p) || scrolls(p.parentElement))
    return !seen(e) && !scrolls(e.parentElement)
}).map(e => e.textContent.trim().slice(0, 60)).join('; ')"""
"""What lies outside of the window, where nothing scrolls to it."""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_pages_fit_their_window(site: Path, width: int, tmp_path: Path) -> None:
    """No page is wider than a phone or a desktop, nothing fails to load, no script fails."""
    browser_kit = pytest.importorskip("kit.browser")
    if not browser_kit.CHROMIUM.exists():
        pytest.skip("needs Chromium")
    browser = browser_kit.Browser(tmp_path)
    try:
        for page in sorted(site.rglob("*.html")):
            browser.open(page.as_uri(), width, 844 if width < 600 else 900)
            browser.until("document.readyState === 'complete'")
            wide = browser.value("document.documentElement.scrollWidth")
            assert wide <= width, f"{page.relative_to(site)} is {wide} wide"
            cut = browser.value(CUT)
            assert not cut, f"{page.relative_to(site)} at {width}: cut off is {cut}"
            broken = browser.value("[...document.images].filter(i => !i.naturalWidth).map(i => i.src).join()")
            assert not broken, f"{page.relative_to(site)}: {broken}"
    finally:
        browser.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", axe.SCHEMES)
def test_axe(site: Path, scheme: str, tmp_path: Path) -> None:
    """Each page at one width and the next at another: a rule's element is on many pages."""
    source = axe.rules()
    browser_kit = pytest.importorskip("kit.browser")
    browser, told = browser_kit.Browser(tmp_path), {}
    try:
        for number, page in enumerate(sorted(set(site.rglob("*.html")) - {site / "404.html"})):  # whose files are a server's
            axe.show(browser, page.as_uri(), axe.WIDTHS[number % len(axe.WIDTHS)], scheme)
            told[page.relative_to(site)] = axe.violations(browser, source)
    finally:
        browser.close()
    assert {page: each for page, each in told.items() if each} == {}
