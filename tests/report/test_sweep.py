import json
from xml.etree import ElementTree

import pytest

from inversefed.cli import main
from inversefed.errors import InputError
from inversefed.report.frontier import cells, read_sweep
from inversefed.report.plots import frontier_figure
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
    assert [row.leakage for row in found] == [25.0, -2.5, -2.5]
    assert cells(found[1]) == ("GaussianNoise(1.0)", "9.0", "12.5", "15.0", "-2.5", "50.0 %", "3.25", "-")


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


def test_a_number_that_is_none_is_not_available(tmp_path, report):
    lost = {"point": "a", "plain": None, "adaptive": 12.0, "control": 10.0, "accuracy": None}
    failed = {"point": "b", "plain": None, "adaptive": None, "control": None, "accuracy": None}
    found = read_sweep(written(tmp_path, [lost, failed]))
    assert [cells(row)[1:6] for row in found] == [("n/a", "12.0", "10.0", "2.0", "-"), (*("n/a",) * 4, "-")]
    text = report(1, frontier=found).to_html()
    assert text.count("not measured") == 1 and "NaN" not in report(1, frontier=found).to_json()


def horizontal(svg, name):
    """Where the marks of an attack are, in the order of the points."""
    groups = [each for each in ElementTree.fromstring(svg).iter() if each.get("class") == name]
    return [
        float(path.get("transform").split("(")[1].split()[0])
        for each in groups
        for path in each.iter()
        if path.tag.endswith("path")
    ]


def test_the_figure_has_a_mark_for_each_trained_point_with_less_leakage_to_the_left(tmp_path):
    right, left = horizontal(frontier_figure(read_sweep(written(tmp_path, POINTS))), "adaptive")
    assert left < right


def test_a_report_shows_it_without_what_the_policy_forbids(report, tmp_path, hostile):
    rows = read_sweep(written(tmp_path, [POINTS[0] | {"point": hostile}, *POINTS[1:]]))
    page = Page(report(1, frontier=rows).to_html())
    assert sum(each.get("class") == "adaptive" for each in page.all("g")) == 2
    assert "What defenses would leave" in "".join(page.words)
    assert not any("style" in attributes for _, attributes in page.elements)
    assert "What defenses would leave" not in report(1).to_html() and "frontier" not in report(1).to_dict()


def test_a_report_keeps_of_a_point_its_name_and_its_numbers(report, tmp_path):
    (first, *_) = report(1, frontier=read_sweep(written(tmp_path, POINTS))).to_dict()["frontier"]
    assert first == {name: POINTS[0].get(name) for name in first if name != "leakage"} | {"leakage": 25.0}
    assert list(first) == ["point", "plain", "adaptive", "control", "accuracy", "epsilon", "delta", "bound", "leakage"]


def test_from_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = written(tmp_path / "sweep", POINTS)
    audit = ["audit", "--attack", "geiping", "--max-iterations", "2", "--quiet"]
    assert main([*audit, "--frontier", str(folder), "--output", "one"]) == 0
    content = json.loads((tmp_path / "one" / "report.json").read_text())
    assert [row["point"] for row in content["frontier"]] == [row["point"] for row in POINTS]
    assert main([*audit, "--frontier", "nowhere.json", "--output", "two"]) == 2
    assert "cannot read a sweep from nowhere.json" in capsys.readouterr().err
