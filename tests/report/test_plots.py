"""Figures: what they show, that they are the same each time, and that a page may hold them."""

import math
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from inversefed.report.frontier import Row
from inversefed.report.plots import MOST_POINTS, frontier_figure, loss_figure

NAN, INF = math.nan, math.inf
NAMES = {
    "markup": "]]></svg><script>alert(1)</script>",
    "mathematics": "$x_{1$ \\frac",
    "unseen": "\u202e\u0000\x1b\udce9",
    "foreign": "\u5dee\u5206 \U0001f600",
    "long": "y" * 2000,
}


def curves(svg: str, name: str) -> list[list[tuple[float, float]]]:
    """The corners of each line of a kind."""
    groups = [each for each in ElementTree.fromstring(svg).iter() if each.get("class") == name]
    texts = [path.get("d") for each in groups for path in each.iter() if path.tag.endswith("path")]
    return [[tuple(map(float, pair.split())) for pair in text.removeprefix("M ").split(" L ")] for text in texts]


def test_the_loss_is_logarithmic_falls_and_the_chosen_restart_is_in_front():
    svg = loss_figure([[100.0, 10.0, 1.0], [50.0, 40.0, 30.0]], chosen=0)
    (chosen,), (other,) = curves(svg, "front"), curves(svg, "back")
    (x0, y0), (x1, y1), (x2, y2) = chosen
    assert x0 < x1 < x2 and y1 - y0 == pytest.approx(y2 - y1, abs=0.05) and y1 > y0
    assert other[0][1] > y0 and svg.index('class="back"') < svg.index('class="front"')
    assert "went from 100 to 1, on a logarithmic scale" in svg and "<title" in svg
    for text in ("iteration", "loss (no unit, logarithmic)", "the restart that was chosen", "other restarts (1)"):
        assert f">{text}<" in svg


def test_signed_losses_are_on_a_linear_scale_without_what_is_not_finite():
    (line,) = curves(loss_figure([[1.0, NAN, 0.5, INF, -1.0, -3.0]]), "front")
    assert len(line) == 4 and line[3][1] - line[2][1] == pytest.approx(4 * (line[1][1] - line[0][1]), abs=0.2)


def test_a_long_history_is_thinned_and_keeps_its_end():
    (line,) = curves(loss_figure([[math.sin(i) for i in range(24_001)]]), "front")
    assert MOST_POINTS / 2 < len(line) <= MOST_POINTS
    assert line[-1][0] > 480  # of 518.4 points in width


@pytest.mark.parametrize("histories", [[], [[]], [[1.0]], [[NAN, NAN, 1.0]]])
def test_nothing_to_draw(histories):
    assert loss_figure(histories) == ""


@pytest.mark.parametrize("history", [[0.5, 0.5], [1e-299, 1e299], [-1e-12, 0.0], [3.0, 3.0 + 1e-12]])
def test_any_finite_history_is_drawn(history):
    (line,) = curves(loss_figure([history]), "front")
    assert len(line) == 2 and "nan" not in loss_figure([history])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("accuracy", [None, 0.5])
def test_any_name_is_drawn_as_text_without_style_link_or_script(name, accuracy):
    rows = [Row(NAMES[name], 20.0, 22.0, 15.0, accuracy), Row("none", 30.0, 30.0, 15.0, accuracy)]
    svg = frontier_figure(rows, page=True)
    elements = list(ElementTree.fromstring(svg).iter())
    assert {each.tag.rpartition("}")[2] for each in elements} <= {"svg", "title", "desc", "g", "path", "text", "tspan"}
    assert not {key for each in elements for key in each.attrib} & {"style", "href", "clip-path"}
    assert sum("id" in each.attrib for each in elements) == 2 and "url(" not in svg and "#3a3f47" not in svg


def test_equal_input_gives_equal_bytes_in_another_process():
    code = (
        "from inversefed.report.plots import *; from inversefed.report.frontier import Row;"
        "print(loss_figure([[1.0, 0.5, 0.01]]) + frontier_figure([Row('none', 30.0, 31.0, 15.0, 0.8)]), end='')"
    )
    here = loss_figure([[1.0, 0.5, 0.01]]) + frontier_figure([Row("none", 30.0, 31.0, 15.0, 0.8)])
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == here


def test_matplotlib_is_loaded_only_to_draw():
    code = "import sys, inversefed.report.html, inversefed.cli.defend; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
