import json

import pytest

from inversefed.cli import main
from inversefed.errors import InputError
from inversefed.report.sweep import read_sweep, sweep_drawing, sweep_table
from tests.report.test_page import Page

POINTS = [
    {"point": "none", "plain": 40.0, "adaptive": 40.0, "control": 15.0, "accuracy": 0.8, "epsilon": None, "note": "x"},
    {"point": "GaussianNoise(1.0)", "plain": 9.0, "adaptive": 12.5, "control": 15.0, "accuracy": 0.5, "epsilon": 3.25},
    {"point": "untrained", "plain": 9.0, "adaptive": 12.5, "control": 15.0, "accuracy": None},
]


def written(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "defend.json").write_text(json.dumps({"setting": {}, "rows": rows}))
    return folder


def test_points_are_read_from_the_file_or_its_folder_with_their_leakage(tmp_path):
    found = read_sweep(written(tmp_path, POINTS))
    assert found == read_sweep(tmp_path / "defend.json")
    assert [row["leakage"] for row in found] == [25.0, -2.5, -2.5]
    assert sweep_table(found)[1] == ("GaussianNoise(1.0)", "9.0", "12.5", "15.0", "-2.5", "50.0%", "3.25")


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [],
        [3],
        [{"point": "x"}],
        [POINTS[0] | {"plain": "9"}],
        [POINTS[0] | {"point": 3}],
        [POINTS[0] | {"accuracy": True}],
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, rows):
    with pytest.raises(InputError, match="sweep"):
        read_sweep(written(tmp_path, rows))


def test_a_number_that_is_none_is_not_available(tmp_path):
    lost = {"point": "a", "plain": None, "adaptive": 12.0, "control": 10.0, "accuracy": None}
    failed = {"point": "b", "plain": None, "adaptive": None, "control": None, "accuracy": None}
    found = read_sweep(written(tmp_path, [lost, failed]))
    assert [cells[1:6] for cells in sweep_table(found)] == [("n/a", "12.0", "10.0", "2.0", "n/a"), ("n/a",) * 5]
    assert sweep_drawing(found) == "" and "NaN" not in json.dumps(found, allow_nan=False)


def test_the_drawing_has_a_mark_for_each_trained_point_with_less_leakage_to_the_left(tmp_path):
    page = Page("<p>" + sweep_drawing(read_sweep(written(tmp_path, POINTS))) + "</p>")
    left, right = (float(mark["cx"]) for mark in reversed(page.all("circle")))
    assert left < right and len(page.all("circle")) == 2


def test_a_report_shows_it_without_what_the_policy_forbids(report, tmp_path, hostile):
    rows = read_sweep(written(tmp_path, [POINTS[0] | {"point": hostile}, *POINTS[1:]]))
    page = Page(report(1, frontier=rows).to_html())
    assert len(page.all("circle")) == 2 and "What defenses would leave" in "".join(page.words)
    assert not any("style" in attributes for _, attributes in page.elements)
    assert "What defenses would leave" not in report(1).to_html() and "frontier" not in report(1).to_dict()


def test_from_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = written(tmp_path / "sweep", POINTS)
    audit = ["audit", "--attack", "geiping", "--max-iterations", "2", "--quiet"]
    assert main([*audit, "--frontier", str(folder), "--output", "one"]) == 0
    content = json.loads((tmp_path / "one" / "report.json").read_text())
    assert [row["point"] for row in content["frontier"]] == [row["point"] for row in POINTS]
    assert main([*audit, "--frontier", "nowhere.json", "--output", "two"]) == 2
    assert "cannot read a sweep from nowhere.json" in capsys.readouterr().err
