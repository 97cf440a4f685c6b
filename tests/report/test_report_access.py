"""The report page for everyone: valid HTML, names for what is not text, headings in order, contrast (WCAG 2.1 AA)."""

import re
from itertools import pairwise

import pytest
from kit import axe
from kit.browser import Browser
from kit.pages import make_bench, make_run

from octosim.report import figures, write_report

html5lib = pytest.importorskip("html5lib", reason="html5lib is not installed")
HTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A page with everything on it: notes, groups, equal bits, measured costs, curves, benches, sources."""
    folder = tmp_path_factory.mktemp("page")
    for seed in range(3):
        make_run(folder / f"runs/octo{seed}", seed=seed, digest="abc"[seed])
        make_run(folder / f"runs/off{seed}", seed=seed, digest="abd"[seed], lac="off")
    make_run(folder / "runs/fp32", method="fp32", model="lenet5", digest="")
    write_report([folder / "runs", make_bench(folder / "b.json"), folder / "none"], folder / "page.html", command="c")
    return (folder / "page.html").read_text()


@pytest.fixture(scope="module")
def page(text):
    return html5lib.parse(text)


def words(element):
    return " ".join("".join(element.itertext()).split())


def test_valid_html(text):
    """html5lib's strict parser raises at the first error of the HTML standard's tokenizer and tree builder."""
    html5lib.HTMLParser(strict=True).parse(text)
    with pytest.raises(html5lib.html5parser.ParseError):
        html5lib.HTMLParser(strict=True).parse(text.replace("</caption>", "", 1))


def test_document(page):
    assert page.get("lang") == "en" and words(page.find(f".//{HTML}title"))
    viewport = next(meta for meta in page.iter(f"{HTML}meta") if meta.get("name") == "viewport")
    assert "user-scalable" not in viewport.get("content") and "maximum-scale" not in viewport.get("content")
    assert [len(list(page.iter(HTML + tag))) for tag in ("header", "main", "footer", "h1")] == [1, 1, 1, 1]
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert len(ids) == len(set(ids))


def test_headings_are_in_order_and_name_their_sections(page):
    levels = [int(e.tag[-1]) for e in page.iter() if isinstance(e.tag, str) and re.fullmatch(HTML + "h[1-6]", e.tag)]
    assert levels[0] == 1 and len(levels) > 10 and all(below <= above + 1 for above, below in pairwise(levels))
    named = {e.get("id"): words(e) for e in page.iter() if e.get("id")}
    sections = list(page.iter(f"{HTML}section"))
    assert sections and all(named[section.get("aria-labelledby")] for section in sections)


def test_pictures_have_names_and_descriptions(page):
    named = {e.get("id"): words(e) for e in page.iter() if e.get("id")}
    pictures = list(page.iter(f"{SVG}svg"))
    shown = [svg for svg in pictures if svg.get("aria-hidden") != "true"]
    assert shown and all(svg.get("role") == "img" for svg in shown)
    for svg in shown:
        title, description = svg.get("aria-labelledby").split()
        assert named[title] and len(named[description]) > len("Line chart.")
    parents = {child: parent for parent in page.iter() for child in parent}
    for svg in set(pictures) - set(shown):  # a legend's swatch and a table's bar stand beside their text
        assert parents[svg].tag in (f"{HTML}li", f"{HTML}div") and words(parents[svg])
    assert not list(page.iter(f"{HTML}img"))


def test_tables_have_captions_heads_and_reachable_regions(page):
    tables = list(page.iter(f"{HTML}table"))
    assert len(tables) >= 5
    for table in tables:
        assert words(table.find(f"{HTML}caption"))
        heads = table.findall(f"{HTML}thead/{HTML}tr/{HTML}th")
        assert heads and all(words(head) and head.get("scope") == "col" for head in heads)
        for row in table.findall(f"{HTML}tbody/{HTML}tr"):
            assert len(row) == len(heads) and row[0].tag == f"{HTML}th" and row[0].get("scope") == "row"
    regions = [e for e in page.iter(f"{HTML}div") if e.get("role") == "region"]
    assert len(regions) == len(tables) and all(e.get("tabindex") == "0" and e.get("aria-label") for e in regions)


def test_links_have_words_and_details_summaries(page):
    links = list(page.iter(f"{HTML}a"))
    assert links and all(words(link) for link in links)
    assert all(words(e[0]) and e[0].tag == f"{HTML}summary" for e in page.iter(f"{HTML}details"))
    assert not [e for e in page.iter() if int(e.get("tabindex") or 0) > 0]


# ---- contrast --------------------------------------------------


def luminance(colour):
    """WCAG 2.1, relative luminance."""
    digits = colour.lstrip("#")
    digits = "".join(2 * c for c in digits) if len(digits) == 3 else digits
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_known_pairs():
    assert contrast("#000", "#ffffff") == 21
    assert contrast("#767676", "#fff") == pytest.approx(4.54, abs=0.005)  # the lightest grey with 4.5 on white


def schemes(text):
    """The page's colours by name: light, dark, print."""
    found = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", text, re.S)]
    assert len(found) == 3 and all(scheme.keys() == found[0].keys() for scheme in found)
    return found


# What is written in which colour on which: the style sheet's rules, each at least 4.5 (text) or 3 (marks and outlines).
TEXT_PAIRS = [("ink", "page"), ("soft", "page"), ("link", "page"), ("ink", "band"), ("soft", "band"), ("ink", "warn")]
MARK_PAIRS = [("warnline", "page"), ("link", "page")]


@pytest.mark.parametrize("scheme", range(3), ids=("light", "dark", "print"))
def test_contrast_of_the_page(text, scheme):
    colours = schemes(text)[scheme]
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert used <= {name for pair in TEXT_PAIRS + MARK_PAIRS for name in pair} | {"line"} and used <= colours.keys()
    assert [pair for pair in TEXT_PAIRS if contrast(*(colours[name] for name in pair)) < 4.5] == []
    assert [pair for pair in MARK_PAIRS if contrast(*(colours[name] for name in pair)) < 3] == []


def test_contrast_of_the_figures(text):
    """Figures are drawn on white; their text is black, the card's text is in its own ink."""
    card = re.search(r"\.card \{ background: (#\w+); color: (#\w+)", text)
    assert contrast(card[1], card[2]) >= 4.5 and card[1] == "#fff"
    assert [colour for colour in figures.COLOURS if contrast(colour, "#fff") < 3] == []
    assert len(set(figures.COLOURS)) == len(set(figures.DASHES)) == 7  # colour is never the only difference
    styles = re.findall(r'<text[^>]*style="([^"]*)"', text)
    written = {colour for style in styles for colour in re.findall(r"fill: (#\w+)", style)}
    assert styles and all(contrast(colour, "#fff") >= 4.5 for colour in written)


@pytest.mark.slow
def test_axe(text, tmp_path):
    """With everything open, since axe-core passes over what is folded."""
    source = axe.rules()
    (tmp_path / "page.html").write_text(text.replace("<details", "<details open"))
    browser = Browser(tmp_path / "profile")
    try:
        for width in axe.WIDTHS:
            for scheme in axe.SCHEMES:
                axe.show(browser, (tmp_path / "page.html").as_uri(), width, scheme)
                assert axe.violations(browser, source) == [], (width, scheme)
                assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.messages == []
    finally:
        browser.close()
