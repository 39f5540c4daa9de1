"""Reports in a real browser: what is drawn, asked for and readable (make browser)."""

from __future__ import annotations

import pytest

from weightsmith.comparison.versions import compare_evaluations
from weightsmith.reports.evaluation_sections import named
from weightsmith.reports.report_files import write_report
from weightsmith.reports.report_subjects import report_of_comparison, report_of_subjects

from .browser import find_browser, running_browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="there is no Chromium on this machine"),
]

PHONE, DESK = 375, 1200

# The smallest contrast ratio (WCAG 2.2) of all texts, those in pictures included, with the text that has it.
CONTRAST = """
(() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = text => {
    const [r, g, b] = channels(text).slice(0, 3).map(c => c / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const isPainted = colour => colour && colour !== 'none' && channels(colour)[3] !== 0;
  const ground = (element, x, y) => {
    for (const below of document.elementsFromPoint(x, y)) {
      if (below === element || below.tagName === 'text') continue;
      const style = getComputedStyle(below);
      const own = below instanceof SVGGeometryElement ? style.fill : style.backgroundColor;
      if (isPainted(own)) return own;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  let worst = [Infinity, 'no text'];
  let texts = 0;
  for (const element of document.querySelectorAll('body *')) {
    const isPicture = element.tagName === 'text';
    if (element.closest('svg') && !isPicture) continue;
    if (![...element.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const x = Math.min(box.left + box.width / 2, innerWidth - 1), y = box.top + box.height / 2;
    const both = [luminance(isPicture ? style.fill : style.color), luminance(ground(element, x, y))];
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    texts += 1;
    if (ratio < worst[0]) worst = [ratio, element.textContent.slice(0, 60)];
  }
  return [texts, ...worst];
})()
"""
FIGURES = """
[...document.querySelectorAll('figure svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')];
  const scale = box.width / svg.viewBox.baseVal.width;
  return {
    width: box.width, height: box.height, texts: texts.length,
    shapes: svg.querySelectorAll('path, use').length,
    smallest: Math.min(...texts.map(t => parseFloat(getComputedStyle(t).fontSize) * scale)),
    named: svg.getAttribute('aria-labelledby').split(' ').every(id => document.getElementById(id).textContent),
    outside: texts.filter(t => {
      const own = t.getBoundingClientRect();
      return own.left < box.left - 1 || own.right > box.right + 1
        || own.top < box.top - 1 || own.bottom > box.bottom + 1;
    }).map(t => t.textContent),
  };
})
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all pages."""
    with running_browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def reports(family, evaluation, league):
    """A report of every kind, by name, with the number of its pictures."""
    scored = [evaluation(f"ties-{at}", at, a=0.5 + at / 20, b=0.9 - at / 20) for at in range(1, 5)]
    parents = [evaluation("fr", 7, a=0.95, b=0.5), evaluation("de", 8, a=0.5, b=0.95)]
    compared = compare_evaluations(
        scored[0], scored[3], parents=parents, base=evaluation("base", 9, a=0.3, b=0.3)
    )
    made = {
        "recipe": report_of_subjects(["ties.yaml"], league=league),
        "evaluations": report_of_subjects([], evaluations=named([("", s) for s in scored])),
        "comparison": report_of_comparison(compared),
    }
    for name, report in made.items():
        write_report(report, family / f"{name}.html")
    return {family / f"{name}.html": len(report.pictures) for name, report in made.items()}


def troubles(browser):
    """What the browser complained of, and what the page asked for beside itself."""
    found = []
    for event in browser.events:
        method, given = event.get("method"), event.get("params", {})
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            found.append(given)
        if method == "Network.requestWillBeSent" and given.get("type") != "Document":
            found.append(given["request"]["url"])
    return found


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_pages_are_drawn_whole_without_a_complaint_or_a_request(browser, reports, width):
    for page, pictures in reports.items():
        browser.open(page, width=width)
        figures = browser.evaluate(FIGURES)
        assert len(figures) == pictures > 0
        for figure in figures:
            assert figure["width"] > 250
            assert figure["height"] > 60
            assert figure["shapes"] > 3
            assert figure["texts"] > 2
            assert figure["named"]
            assert figure["smallest"] > 8.5
            assert figure["outside"] == []
        wide = browser.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        assert troubles(browser) == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_every_text_can_be_read_in_light_and_dark(browser, reports, width, dark):
    for page in reports:
        browser.open(page, width=width, dark=dark)
        height = browser.evaluate("document.documentElement.scrollHeight")
        browser.open(page, width=width, height=height, dark=dark)
        ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")
        texts, worst, where = browser.evaluate(CONTRAST)
        assert texts > 30
        assert worst >= 4.5, where


def test_numbers_of_a_picture_open_without_scripts(browser, reports):
    page = next(iter(reports))
    browser.open(page, width=PHONE)
    assert browser.evaluate("document.scripts.length") == 0
    browser.evaluate("document.querySelector('summary').click()")
    shown = "document.querySelector('details table').getBoundingClientRect().height"
    assert browser.evaluate(shown) > 30


def test_a_hostile_name_does_nothing_in_a_browser(browser, evaluation, tmp_path):
    hostile = "</desc><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
    shares = {hostile: 0.5, "b": 0.6}
    found = [("", evaluation(f"{hostile}{i}", i, **shares)) for i in range(2)]
    report = report_of_subjects([], evaluations=named(found))
    write_report(report, tmp_path / "hostile.html")
    browser.open(tmp_path / "hostile.html", width=DESK)
    assert "taken" not in browser.evaluate("document.title.replace(/<.*>/s, '')")
    assert browser.evaluate("document.scripts.length + document.images.length") == 0
    assert browser.evaluate("document.querySelectorAll('figure svg').length") == len(
        report.pictures
    )
    assert troubles(browser) == []


def test_pages_print(browser, reports):
    for page in reports:
        browser.open(page, width=DESK, dark=True)
        printed = browser.pdf()
        assert printed.startswith(b"%PDF-")
        assert len(printed) > 10_000
        browser.send("Emulation.setEmulatedMedia", media="print")
        ink = browser.evaluate("getComputedStyle(document.body).color")
        assert ink == "rgb(26, 32, 41)"
        browser.send("Emulation.setEmulatedMedia", media="")
