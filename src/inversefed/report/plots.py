"""Draw a report's figures as SVG, by matplotlib without a display: losses, leakage against accuracy, windows.

matplotlib is imported when a figure is drawn, for it is slow to import. Its SVG styles every element by an attribute
`style`, which the page's content security policy forbids, and refers from one element to another by identifiers, which
two figures on one page would share. `_plain_svg` writes the same drawing with presentation attributes alone, so that it
needs no style sheet, script, link or font file; text stays text, in a font of the reader's system. Equal input gives
equal bytes: there is no date in it, and a fixed salt for identifiers.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from inversefed.report.frontier import Row

__all__ = ["MOST_POINTS", "frontier_figure", "loss_figure", "window_figure"]

MOST_POINTS = 400
"""Points of a drawn curve; more cannot be seen, and would make the page large."""

_INK, _RULE, _STRONG, _WEAK = "#3a3f47", "#c9ccd1", "#b3261e", "#2b77b8"
"""Colors of text and axes, of rules, and of two kinds of marks, which differ in print by shade and form as well."""

_MARK: dict[str, Any] = {"marker": "o", "ms": 6, "ls": "none"}
_PLAIN = _MARK | {"mfc": "none", "mec": _WEAK, "gid": "plain"}
_ADAPTIVE = _MARK | {"mfc": _STRONG, "mec": _STRONG, "gid": "adaptive"}

_MOST_OF_A_NAME = 44
"""Characters of a defense that the key of a figure shows."""

_SETTINGS: dict[str, Any] = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "inversefed",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "xtick.labelsize": 9,
    "ytick.color": _INK,
    "ytick.labelsize": 9,
}


def loss_figure(histories: Sequence[Sequence[float]], chosen: int | None = None) -> str:
    """Draw losses over iterations, one line a restart, or nothing where there is no line to draw.

    The loss is on a logarithmic scale where all of it is positive and it spans a decade, else on a linear one. Values
    that are not finite, or of 1e300 and more, are left out.

    Args:
        histories: the minimized loss of each restart, one entry an iteration; it has no unit.
        chosen: which restart is drawn in front of the others.

    Returns:
        An `<svg>` element with a title and a description, for a page.

    >>> loss_figure([[1.0, 0.1, 0.01]])[:4], loss_figure([[], [1.0]])
    ('<svg', '')
    """
    curves = {index: points for index, history in enumerate(histories) if len(points := _points(history)) > 1}
    if not curves:
        return ""
    losses = [loss for points in curves.values() for _, loss in points]
    logarithmic = min(losses) > 0 and 10 <= max(losses) / min(losses) <= 1e100
    alone = next(iter(curves)) if len(curves) == 1 else None
    front = chosen if chosen in curves else alone
    with _figure(7.2, 2.9) as (figure, axes):
        others = [index for index in curves if index != front]
        for number, index in enumerate(others):
            label = f"other restarts ({len(others)})" if front is not None else f"restarts ({len(others)})"
            axes.plot(*zip(*curves[index], strict=True), color=_WEAK, lw=0.9, alpha=0.6, gid="back",
                      label=label if number == 0 else None)  # fmt: skip
        if front is not None:
            label = "the restart that was chosen" if others else "the attack"
            axes.plot(*zip(*curves[front], strict=True), color=_STRONG, lw=1.8, gid="front", label=label)
        axes.set_yscale("log" if logarithmic else "linear")
        _numbered(axes, logarithmic)
        axes.set_xlabel("iteration")
        axes.set_ylabel(f"loss (no unit{', logarithmic' if logarithmic else ''})")
        axes.grid(axis="y")
        axes.legend(loc="upper right")
        return _plain_svg(figure, "loss", "Loss over iterations", _told(curves, front, logarithmic), page=True)


def _told(curves: dict[int, list[tuple[int, float]]], front: int | None, logarithmic: bool) -> str:
    shown = curves[front] if front is not None else next(iter(curves.values()))
    last = max(points[-1][0] for points in curves.values())
    return (
        f"{len(curves)} restart{'s'[: len(curves) != 1]}, {last} iterations; the loss went from {shown[0][1]:.3g} to "
        f"{shown[-1][1]:.3g}, on a {'logarithmic' if logarithmic else 'linear'} scale."
    )


def _points(history: Sequence[float]) -> list[tuple[int, float]]:
    """At most `MOST_POINTS` of the entries that can be drawn, evenly spaced, the last one with them."""
    finite = [(iteration, loss) for iteration, loss in enumerate(history, start=1) if abs(loss) < 1e300]
    step = max(1, math.ceil(len(finite) / MOST_POINTS))
    return finite[::-step][::-1]


def window_figure(found: Sequence[float], truth: Sequence[float] | None, name: str, title: str) -> str:
    """Draw a channel of a recovered window of a series, and the private one behind it.

    Args:
        found: what was recovered, in units of the series.
        truth: the private values at the same places; `None` where they are not known.
        name: begins the identifiers of title and description, which are used once on a page.
        title: what it is of.

    Returns:
        An `<svg>` element with a title and a description, for a page.

    >>> window_figure([0.0, 1.0], [0.0, 2.0], "window-0", "Window 0")[:4]
    '<svg'
    """
    with _figure(7.2, 2.2) as (figure, axes):
        if truth is not None:
            axes.plot(range(len(truth)), truth, color=_WEAK, lw=2.6, alpha=0.6, gid="back", label="private")
        axes.plot(range(len(found)), found, color=_STRONG, lw=1.2, gid="front", label="recovered")
        axes.set_xlabel("place")
        axes.grid(axis="y")
        axes.legend(loc="upper right")
        off = "" if truth is None else f"; at most {max(abs(a - b) for a, b in zip(found, truth, strict=True)):.3g} off"
        told = f"{len(found)} values from {min(found):.4g} to {max(found):.4g}{off}."
        return _plain_svg(figure, name, title, told, page=True)


def frontier_figure(rows: "Sequence[Row]", page: bool = False) -> str:
    """Draw leakage (to the right) against accuracy (upwards), or one row below the other where nothing was trained.

    A good defense stands in the upper left. The filled mark is the attack that knows the defense, the hollow one the
    attack that ignores it: what lies between them is what a test with the weaker attack would have hidden.

    Args:
        rows: the points of a sweep; their numbers in the figure count from 1, in this order.
        page: whether it is for a page, whose ink it then takes, rather than to stand alone on white.

    Returns:
        An `<svg>` element with a title and a description; empty where no row has numbers to draw.
    """
    numbered = [(number, row) for number, row in enumerate(rows, start=1) if row.leakage is not None]
    trained = any(row.accuracy is not None for _, row in numbered)
    drawn = [(number, row) for number, row in numbered if row.accuracy is not None or not trained]
    if not drawn:
        return ""
    with _figure(7.6, max(3.6 if trained else 1.6, 1.5 + 0.19 * len(drawn))) as (figure, axes):
        for place, (number, row) in enumerate(drawn):
            height = 100 * (row.accuracy or 0.0) if trained else -place
            margins = [margin for margin in row.margins if margin is not None]
            axes.plot([min(margins), max(margins)], [height, height], color=_RULE, lw=1.2, zorder=1)
            for margin, look in zip(row.margins, (_PLAIN, _ADAPTIVE), strict=True):
                if margin is not None:
                    axes.plot([margin], [height], zorder=2, **look)
            if trained:
                beside: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "size": 9}
                axes.annotate(str(number), (max(margins), height), **beside)
        axes.axvline(0.0, color=_INK, lw=0.9, zorder=0)
        axes.set_xlabel("leakage: PSNR above the best control, dB (0 or less: none)")
        names = [f"{number}  {_short(row.point)}" for number, row in drawn]
        if trained:
            axes.set_ylabel("accuracy of the trained network, %")
            axes.text(1.04, 1.0, "\n".join(names), transform=axes.transAxes, va="top", size=8.5, linespacing=1.5)
        else:
            axes.set_yticks([-place for place in range(len(drawn))], names)
            axes.margins(y=1.2 / (len(drawn) + 1))
        axes.margins(x=0.08)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        both = [axes.plot([], [], **look | {"gid": None})[0] for look in (_PLAIN, _ADAPTIVE)]
        labels = ("attack that ignores the defense", "attack that knows it")
        figure.legend(both, labels, loc="outside lower center", ncols=2)
        left_out = [row.point for row in rows if all(row is not shown for _, shown in drawn)]
        text = _leakages([row for _, row in drawn], left_out, trained)
        return _plain_svg(figure, "frontier", "Leakage and utility of defenses", text, page)


def _short(name: str) -> str:
    text = "".join(each if each.isprintable() else "?" for each in name)
    return text if len(text) <= _MOST_OF_A_NAME else f"{text[: _MOST_OF_A_NAME - 2]}.."


def _leakages(rows: "Sequence[Row]", left_out: Sequence[str], trained: bool) -> str:
    parts = [
        f"{row.point}: {'no number' if row.margins[1] is None else f'{row.margins[1]:.1f} dB'}"
        + (f", {100 * float(row.accuracy or 0):.0f} % right" if trained else "")
        for row in rows
    ]
    rest = f" Not drawn, for want of numbers: {', '.join(left_out)}." if left_out else ""
    return f"Leakage to the attack that knows the defense, of {len(rows)} points. {'; '.join(parts)}.{rest}"


def _numbered(axes: "Axes", logarithmic: bool) -> None:
    """Ticks as plain numbers; 1, 2 and 5 of each decade where there are few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if logarithmic:
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


@contextmanager
def _figure(width: float, height: float) -> "Iterator[tuple[Figure, Axes]]":
    """A figure of this size in inches, whatever settings of matplotlib the machine has."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", _SETTINGS]), warnings.catch_warnings():
        # A name may have characters that the font by which text is measured lacks; the reader's fonts show them.
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_subplot()


def _plain_svg(figure: "Figure", name: str, title: str, text: str, page: bool) -> str:
    """The figure without styles, identifiers and links, with what a screen reader says of it.

    Args:
        figure: what is drawn.
        name: begins the identifiers of title and description.
        title: a few words.
        text: what there is to see, in words.
        page: whether ink is that of the page (`currentColor`) on its own paper.
    """
    buffer = io.StringIO()
    none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=page, metadata=none)
    source = ElementTree.fromstring(buffer.getvalue())
    paths = {each.get("id"): each for each in source.iter() if _tag(each) == "path" and each.get("id")}
    given = {} if page else {"xmlns": "http://www.w3.org/2000/svg"}  # HTML knows it; a file of its own must say so
    given |= {"viewBox": source.get("viewBox", "0 0 1 1"), "role": "img", "font-family": "sans-serif"}
    root = ElementTree.Element("svg", given | {"aria-labelledby": f"{name}-title {name}-text"})
    for tag, said, identity in (("title", title, "title"), ("desc", text, "text")):
        ElementTree.SubElement(root, tag, {"id": f"{name}-{identity}"}).text = _xml(said)
    for child in source:
        _copy(child, root, paths, page)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


_KEPT = {"d", "transform", "x", "y", "width", "height"}
_OURS = {"front", "back", "plain", "adaptive"}
"""Identifiers that this module gives, which become classes."""


def _copy(element: ElementTree.Element, into: ElementTree.Element, paths: dict[str | None, Any], page: bool) -> None:
    """Copy an element and what is in it: groups, paths and text; a reference to a path becomes that path."""
    tag = _tag(element)
    if tag not in ("g", "path", "text", "tspan", "use"):
        return
    given = {name: _rounded(value) for name, value in element.attrib.items() if name in _KEPT}
    given |= _presented(element.get("style", ""), page)
    if element.get("id") in _OURS:
        given["class"] = str(element.get("id"))
    if tag == "use":
        link = next(value for name, value in element.attrib.items() if name.endswith("href"))
        pattern = paths[link.removeprefix("#")]
        x, y = given.pop("x", "0"), given.pop("y", "0")
        given = {"d": _rounded(pattern.get("d", "")), "transform": f"translate({x} {y})"} | given
        given = _presented(pattern.get("style", ""), page) | given
        tag = "path"
    copied = ElementTree.SubElement(into, tag, given)
    copied.text = element.text if tag in ("text", "tspan") else None
    for child in element:
        _copy(child, copied, paths, page)


def _presented(style: str, page: bool) -> dict[str, str]:
    """Declarations of a style as attributes; the font is the page's, in the given size."""
    found = dict(part.strip().split(": ", 1) for part in style.split(";") if ": " in part)
    found.pop("font-family", None)
    if font := found.pop("font", ""):
        found["font-size"] = next(word for word in font.split() if word.endswith("px"))
    return {name: "currentColor" if page and value == _INK else value for name, value in found.items()}


def _rounded(text: str) -> str:
    """Coordinates to a hundredth of a point, which nobody sees."""
    return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), " ".join(text.split()))


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _xml(text: str) -> str:
    """Text without the characters that XML has no place for."""
    return "".join(each if each.isprintable() or each in "\n\t" else "?" for each in text)
