"""Rows of the frontier, with and without numbers: table, drawing and JSON."""

import json

import pytest

from inversefed.errors import InputError
from inversefed.report.frontier import Row, finite, notes, read_rows, table, to_dict
from inversefed.report.plots import frontier_figure

WHOLE = Row("none", 30.0, 31.0, 15.0, 0.8)
LOST = Row("FedAvg(lr=9.0)", None, 12.0, 15.0, 0.5, bound=0.0924)
FAILED = Row("DPSGD(1.0, 1.0)", None, None, None, note="not measured: BatchNorm")


def test_what_came_to_no_number_is_not_available_in_the_table() -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table([WHOLE, LOST, FAILED]).splitlines()]
    assert lines[2] == ["none", "30.0", "31.0", "15.0", "16.0", "80.0 %", "-", "-"]
    assert lines[3] == ["FedAvg(lr=9.0)", "n/a", "12.0", "15.0", "-3.0", "50.0 %", "-", "9.24 %"]
    assert lines[4] == ["DPSGD(1.0, 1.0)", "n/a", "n/a", "n/a", "n/a", "-", "-", "-"]


def marks(svg: str, name: str) -> int:
    """Marks of an attack: groups with its class."""
    return svg.count(f'class="{name}"')


def test_the_figure_leaves_it_out_and_says_so() -> None:
    svg = frontier_figure([WHOLE, LOST, FAILED])
    assert (marks(svg, "plain"), marks(svg, "adaptive")) == (1, 2) and "nan" not in svg
    assert "Not drawn, for want of numbers: DPSGD(1.0, 1.0)." in svg and svg.count("DPSGD") == 1
    assert frontier_figure([FAILED]) == frontier_figure([]) == ""
    untrained = Row("ATS()", 20.0, 21.0, 15.0)
    assert "Not drawn, for want of numbers: ATS()" in frontier_figure([WHOLE, untrained])
    assert "1  ATS()" in frontier_figure([untrained])


def test_the_figure_names_axes_with_units_marks_and_points() -> None:
    svg = frontier_figure([WHOLE, LOST])
    said = ("leakage: PSNR above the best control, dB", "accuracy of the trained network, %")
    for text in (*said, "attack that ignores the defense", "attack that knows it", "2  FedAvg(lr=9.0)"):
        assert f">{text}" in svg, text


def test_json_has_null_for_it_and_reads_back() -> None:
    rows = (WHOLE, LOST, FAILED)
    text = json.dumps([to_dict(row) for row in rows], allow_nan=False)
    assert json.loads(text)[2]["leakage"] is None
    assert read_rows(json.loads(text)) == rows
    foreign = read_rows(json.loads('[{"point": "x", "plain": NaN, "adaptive": 1.0, "control": 2.0}]'))
    assert foreign[0].plain is None and foreign[0].leakage == -1.0
    assert finite(float("inf")) is None


@pytest.mark.parametrize("plain", ['"9"', "true", "[]", "1" + 400 * "0", "1e300", "-1e7"])
def test_what_is_no_number_is_refused(plain: str) -> None:
    with pytest.raises(InputError, match="points of a sweep"):
        read_rows(json.loads(f'[{{"point": "x", "plain": {plain}, "adaptive": 1.0, "control": 2.0}}]'))


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, 80])
def test_an_accuracy_is_a_share(accuracy: float) -> None:
    with pytest.raises(InputError, match=r"accuracy is .* not between 0 and 1"):
        read_rows([{"point": "x", "plain": 9.0, "adaptive": 1.0, "control": 2.0, "accuracy": accuracy}])


def test_notes_name_their_points_unless_they_hold_for_all() -> None:
    assert notes([WHOLE, FAILED]) == ["DPSGD(1.0, 1.0): not measured: BatchNorm"]
    assert notes([Row("a", 1.0, 1.0, 1.0, note="no data"), Row("b", 1.0, 1.0, 1.0, note="no data")]) == ["no data"]
