"""What a page consists of, and that nothing in it can run, fetch or change with the machine."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import matplotlib as mpl
import pytest

from weightsmith.findings import Finding, Severity
from weightsmith.reports.drawing import save_png, save_svg
from weightsmith.reports.figures import (
    ColourScale,
    Grid,
    IntervalBar,
    Point,
    estimates,
    heat_map,
    plane,
)
from weightsmith.reports.page import (
    DataTable,
    Facts,
    FindingList,
    PageSection,
    Paragraph,
    Picture,
    Report,
    TextListing,
    render,
)
from weightsmith.reports.palette import COLOURS, contrast

HOSTILE = "\"'><script>alert(1)</script><img src=http://example.com/x onerror=alert(1)>&$x_1$\u202e\x07--><!--"


class Reader(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_comment(self, data):
        self.elements.append(("comment", {"data": data}))

    def handle_data(self, data):
        self.text += data


def grid(name="q", scale=ColourScale.SIZE):
    return Grid(("0", name), (name, "b"), ((0.1, None), (float("inf"), 0.3)), scale, "layer")


def every_block(name):
    table = DataTable(name, (name, "n"), ((name, "1"),), frozenset({1}))
    figures = {
        "map": heat_map(grid(name)),
        "bars": estimates(
            [IntervalBar(name, 0.5, 0.4, 0.6, name), IntervalBar("t", 0.5, 0.4, 0.6, "s")], name
        ),
        "plane": plane(
            [Point(1.0, 2.0, name, name, name), Point(2.0, 1.0, "p", name, name)], name, name
        ),
    }
    return Report(
        name,
        name,
        (
            PageSection(
                name, tuple(Picture(k, name, name, f, table, name) for k, f in figures.items())
            ),
            PageSection(
                "words",
                (
                    Paragraph(name, caution=True),
                    Facts(((name, name),)),
                    TextListing(name, f"{name}\n{name}"),
                    table,
                    FindingList((Finding(Severity.ERROR, name, name, name, name),)),
                ),
            ),
        ),
    )


def test_a_hostile_name_stays_text_everywhere():
    page = render(every_block(HOSTILE))
    found = Reader(page)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "img", "iframe", "object", "link", "comment", "foreignobject"}
    for _, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert found.text.count("alert(1)") > 20
    assert "\u202e" not in page
    assert "\x07" not in page


def test_names_in_other_scripts_and_mathematical_signs_are_written_as_they_are():
    name = "語 مرحبا $\\frac{1}{0$"
    page = render(every_block(name))
    assert name in Reader(page).text


def test_a_page_fetches_nothing():
    page = render(every_block("name"))
    without_namespaces = page.replace("http://www.w3.org/2000/svg", "")
    assert "http" not in without_namespaces.replace("http-equiv", "")
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_every_id_of_a_page_is_its_own_and_every_reference_leads_somewhere():
    found = Reader(render(every_block("name")))
    ids = [a["id"] for _, a in found.elements if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = [a["href"].removeprefix("#") for _, a in found.elements if "href" in a]
    wanted += [i for _, a in found.elements for i in (a.get("aria-labelledby") or "").split()]
    assert wanted
    assert set(wanted) <= set(ids)


def test_a_picture_has_a_title_and_a_description_and_its_numbers_beside_it():
    picture = Picture(
        "k", "Title", "What it shows.", heat_map(grid()), DataTable("T", ("a",), (("7.5",),))
    )
    page = render(Report("r", "s", (PageSection("x", (picture,)),)))
    assert 'role="img"' in page
    assert '<title id="k-title">Title</title><desc id="k-desc">What it shows.</desc>' in page
    assert '<th scope="row">7.5</th>' in page


def test_the_same_report_has_the_same_bytes_whatever_the_user_has_set():
    def pictures():
        report = every_block("name")
        return [render(report)] + [
            save(picture.figure) for picture in report.pictures for save in (save_svg, save_png)
        ]

    first = pictures()
    with mpl.rc_context({"font.size": 20, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert pictures() == first


def test_pictures_are_files_that_others_can_open():
    figure = heat_map(grid())
    assert save_png(figure).startswith(b"\x89PNG\r\n")
    text = save_svg(figure).decode()
    assert "var(--" not in text
    assert ">0.3</text>" in text


def test_cells_without_a_value_are_told_apart_and_infinite_ones_are_named():
    text = save_svg(heat_map(grid())).decode()
    assert f"fill: {COLOURS['absent'][0]}" in text
    assert ">∞</text>" in text


def test_no_two_colours_share_their_light_form():
    light = [both[0] for both in COLOURS.values()]
    assert len(set(light)) == len(light)


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_is_readable_on_what_it_stands_on(dark):
    texts = ["ink", "quiet", "link", "error", "warning"]
    for name in texts:
        for ground in ("paper", "panel"):
            assert contrast(COLOURS[name][dark], COLOURS[ground][dark]) >= 4.5, (name, ground)
    for name in COLOURS:
        if name.startswith("on-"):
            ground = COLOURS[name.removeprefix("on-")][dark]
            assert contrast(COLOURS[name][dark], ground) >= 4.5, name
        if name.startswith("series-"):
            assert contrast(COLOURS[name][dark], COLOURS["paper"][dark]) >= 3, name


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_names_of_points_do_not_hide_each_other():
    crowd = [Point(0.5 + i / 1000, 0.5 + i / 1000, f"name-{i}") for i in range(9)]
    far = [Point(0.0, 0.0, "low"), Point(1.0, 1.0, "high")]
    text = save_svg(plane([*crowd, *far], "x", "y")).decode()
    assert text.count(">name-") == 4
    assert ">low<" in text
    assert ">high<" in text


@pytest.mark.parametrize("logarithmic", [False, True])
def test_points_apart_have_all_their_names(logarithmic):
    points = [Point(0.5 + i, i % 3 / 10 + 100, f"name-{i}") for i in range(4)]
    text = save_svg(plane(points, "x", "y", logarithmic_x=logarithmic)).decode()
    assert text.count(">name-") == 4


def test_points_on_one_place_share_their_names():
    points = [Point(1.0, 1.0, "a", "s"), Point(1.0, 1.0, "b", "t"), Point(2.0, 3.0, "c", "s")]
    assert ">a, b<" in save_svg(plane(points, "x", "y")).decode()
