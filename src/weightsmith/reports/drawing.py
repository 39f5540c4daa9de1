"""Pictures: figures of matplotlib as SVG for a page, and as files.

Text stays text, so that it can be read out, searched and enlarged. Nothing in a picture depends on the user's settings
of matplotlib, on the time or on the machine.
"""

from __future__ import annotations

import importlib.util
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from weightsmith.errors import UsageError
from weightsmith.reports.palette import COLOURS, light
from weightsmith.wording import with_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In points. At this width the text of a picture is as large as that around it on a phone.
WIDTH = 262.0
FONT_SIZE = 8.5
SMALL_FONT_SIZE = 7.5
_POINTS_PER_INCH = 72
_PIXELS_PER_INCH = 200
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}

_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_FONT_FAMILY = re.compile(r"\s*font-family:[^;]*;?")
_POINTS_TO_IDS = re.compile(r"url\(#([^)]*)\)")
_VARIABLE_OF = {both[0]: f"var(--{name})" for name, both in COLOURS.items()}


def settings() -> dict[Any, Any]:
    """How matplotlib draws here, whatever the user has set."""
    return {
        "font.family": "DejaVu Sans",
        "font.size": FONT_SIZE,
        "svg.fonttype": "none",
        "svg.hashsalt": "weightsmith",
        "text.parse_math": False,
        "text.color": light("ink"),
        "figure.facecolor": light("paper"),
        "axes.facecolor": "none",
        "axes.edgecolor": light("rule"),
        "axes.labelcolor": light("ink"),
        "axes.labelsize": FONT_SIZE,
        "axes.titlesize": FONT_SIZE,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": False,
        "axes.xmargin": 0.06,
        "axes.ymargin": 0.06,
        "grid.color": light("rule"),
        "grid.linewidth": 0.6,
        "xtick.color": light("rule"),
        "ytick.color": light("rule"),
        "xtick.labelcolor": light("ink"),
        "ytick.labelcolor": light("ink"),
        "xtick.labelsize": SMALL_FONT_SIZE,
        "ytick.labelsize": SMALL_FONT_SIZE,
        "legend.fontsize": SMALL_FONT_SIZE,
        "legend.frameon": False,
    }


def require_matplotlib() -> None:
    """Raise UsageError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            f"Reports need matplotlib, which is not installed; {with_extra('report')}."
        )


@contextmanager
def drawing() -> Iterator[None]:
    """Within it matplotlib has the settings of reports; raises UsageError where it is not installed."""
    require_matplotlib()
    import matplotlib as mpl

    with mpl.rc_context(), warnings.catch_warnings():
        # The letters of other scripts are missing in the font that text is measured with, not in the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(settings())
        yield


def new_figure(height: float) -> Figure:
    """An empty figure of the common width and a height in points."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / _POINTS_PER_INCH, height / _POINTS_PER_INCH), dpi=100)


def axes_with_margins(
    figure: Figure, *, left: float, right: float, top: float, bottom: float
) -> Axes:
    """Axes that leave margins in points for what is written around them."""
    height = figure.get_figheight() * _POINTS_PER_INCH
    box = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (top + bottom) / height)
    return figure.add_axes(box)


def text_width(text: str, size: float = SMALL_FONT_SIZE) -> float:
    """About how wide a text is, in points: the figures' margins are made for it."""
    return sum(1.0 if ord(c) > 0x2E80 else 0.62 for c in text) * size


def save_svg(figure: Figure) -> bytes:
    """The picture as an SVG file, on light paper."""
    return _svg_text(figure).encode()


def save_png(figure: Figure) -> bytes:
    """The picture as a PNG file, on light paper."""
    buffer = io.BytesIO()
    with drawing():
        figure.savefig(buffer, format="png", dpi=_PIXELS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _svg_text(figure: Figure) -> str:
    buffer = io.StringIO()
    with drawing():
        figure.savefig(buffer, format="svg", metadata=_NO_METADATA)
    return buffer.getvalue()


def inline_svg(figure: Figure, key: str, title: str, description: str) -> str:
    """The picture as an element of a page: colours by the page's variables, ids that begin with `key`, and a
    title and description for who cannot see it.
    """
    root = ET.fromstring(_svg_text(figure))
    for element in root.iter():
        _make_local(element, key)
    _drop_styles(root)
    _unwrap(root)
    box = root.get("viewBox", "")
    root.attrib.clear()
    named = {"title": title, "desc": description}
    root.attrib.update(
        {
            "viewBox": box,
            "role": "img",
            "aria-labelledby": " ".join(f"{key}-{tag}" for tag in named),
        }
    )
    for position, (tag, text) in enumerate(named.items()):
        element = ET.Element(tag, {"id": f"{key}-{tag}"})
        element.text = text
        root.insert(position, element)
    return ET.tostring(root, encoding="unicode")


def _make_local(element: ET.Element, key: str) -> None:
    """Without namespaces, which HTML does not need; with short numbers and the page's colours and fonts."""
    element.tag = element.tag.rpartition("}")[2]
    if element.text is not None and not element.text.strip():
        element.text = None
    element.tail = None
    attributes = dict(element.attrib)
    element.attrib.clear()
    for name, value in attributes.items():
        local = name.rpartition("}")[2]
        if local == "id":
            if element.tag == "g":
                continue
            value = f"{key}-{value}"
        elif local == "href":
            value = f"#{key}-{value.removeprefix('#')}"
        elif local == "style":
            value = _FONT_FAMILY.sub("", value).replace("; ", ";").replace(": ", ":").strip("; ")
        value = _HEX.sub(lambda found: _VARIABLE_OF.get(found[0], found[0]), value)
        value = _POINTS_TO_IDS.sub(rf"url(#{key}-\1)", value)
        value = _NUMBER.sub(lambda found: f"{float(found[0]):.1f}", value)
        if local == "d":
            value = " ".join(value.split())
        if not (local == "transform" and value.startswith("rotate(-0 ")):
            element.set(local, value)


def _drop_styles(root: ET.Element) -> None:
    for parent in root.iter():
        for child in [c for c in parent if c.tag in ("style", "metadata")]:
            parent.remove(child)


def _unwrap(parent: ET.Element) -> None:
    """Put the content of groups that say nothing in their place."""
    children: list[ET.Element] = []
    for child in parent:
        _unwrap(child)
        bare = child.tag in ("g", "defs") and not child.attrib
        children.extend(child if bare and child.tag == "g" else [child])
    parent[:] = [c for c in children if len(c) or c.attrib or c.text]
