"""Rows of a table as a tensor, and back; what is guessed without an update; how rows are compared."""

from collections.abc import Mapping

import pytest
import torch
from torch import Generator

from inversefed.errors import InputError
from inversefed.evaluation.metrics import FACTS
from inversefed.inputs import InputSpace, columns
from inversefed.inputs.columns import Category, Columns, Number

TABLE = Columns(
    (
        Number("age", 17, 90, whole=True, mean=40.0, std=14.0),
        Category("work", ("private", "state", "none")),
        Number("score", -1.5, 2.5, mean=0.25, std=0.5),
    )
)
ROWS: list[Mapping[str, object]] = [
    {"age": 39, "work": "state", "score": 0.25},
    {"age": 90, "work": "none", "score": -1.5},
]


def test_rows_come_back_as_they_were() -> None:
    assert isinstance(TABLE, InputSpace)
    encoded = TABLE.encode(ROWS)
    TABLE.check(encoded)
    assert encoded.shape == (2, 5)
    assert TABLE.decode(encoded) == ROWS


def test_every_whole_number_survives_single_precision() -> None:
    table = Columns((Number("weight", 12_285, 1_490_400, whole=True),))
    values = range(12_285, 1_490_400, 997)
    encoded = table.encode([{"weight": value} for value in values])
    assert [row["weight"] for row in table.decode(encoded)] == list(values)
    assert torch.equal(table.snap(encoded), encoded)


def test_numbers_are_standardized_and_categories_fed_as_they_are() -> None:
    mean, std = TABLE.normalization()
    fed = (TABLE.encode(ROWS) - mean) / std
    assert torch.allclose(fed[0], torch.tensor([-1 / 14, 0, 1, 0, 0.0]), atol=1e-6)
    assert torch.allclose(fed[1], torch.tensor([50 / 14, 0, 0, 1, -3.5]), atol=1e-6)


def test_what_is_near_a_row_snaps_to_it() -> None:
    rows = TABLE.encode(ROWS)
    near = rows + 0.01 * (torch.rand(rows.shape, generator=Generator().manual_seed(0)) - 0.5)
    snapped = TABLE.snap(near)
    assert torch.equal(snapped[:, :4], rows[:, :4])
    assert float((snapped - rows).abs().max()) < 0.02


def test_a_range_with_broken_ends_snaps_to_whole_numbers_within_it() -> None:
    table = Columns((Number("age", 16.5, 20.5, whole=True),))
    assert [row["age"] for row in table.decode(table.snap(torch.tensor([[0.0], [1.0]])))] == [17, 20]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"age": 39, "work": "moon", "score": 0}, "row 0: column work does not know moon; its values are private"),
        ({"age": 39, "work": "<script>", "score": 0}, r"does not know '\\x3cscript\\x3e'"),
        ({"age": 12, "work": "none", "score": 0}, "takes numbers from 17 to 90; got 12; give it a wider range"),
        ({"age": float("nan"), "work": "none", "score": 0}, "takes numbers from 17 to 90; got nan"),
        ({"age": "old", "work": "none", "score": 0}, "column age takes numbers; got old"),
        ({"age": None, "work": "none", "score": 0}, "column age takes numbers; got"),
        ({"age": 39, "work": "none"}, "row 0 lacks score"),
    ],
)
def test_cells_that_the_schema_does_not_know_are_refused(row: Mapping[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TABLE.encode([row])


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (torch.zeros(2, 4), r"rows are a floating-point tensor \[n, 5\]"),
        (torch.zeros(0, 5), "at least one"),
        (torch.full((1, 5), 2.0), r"must lie in \[0, 1\]"),
        (torch.tensor([[0.5, 0.5, 0.5, 0, 0.5]]), "column work takes one-hot blocks of 3"),
        (torch.tensor([[0.5, 1.0, 1.0, 0, 0.5]]), "column work takes one-hot blocks of 3"),
    ],
)
def test_tensors_that_are_no_rows_are_refused(inputs: torch.Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        TABLE.check(inputs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Columns(()),
        lambda: Columns((Number("a", 0, 1), Category("a", ("x",)))),
        lambda: Number("a", 1, 1),
        lambda: Number("a", 0, 1, std=0.0),
        lambda: Number("a", 0, float("inf")),
        lambda: Category("a", ()),
        lambda: Category("a", ("x", "x")),
    ],
)
def test_a_schema_that_cannot_be_is_refused(make: object) -> None:
    with pytest.raises(InputError, match="needs"):
        make()  # type: ignore[operator]


def test_measures_count_cells_rows_and_standard_deviations() -> None:
    truth = TABLE.encode(ROWS)
    found = truth.clone()
    found[0, 0] += 2 / 73  # two years, 0.14 standard deviations
    found[1, 1:4] = torch.tensor([0.2, 0.5, 0.3])
    measures = TABLE.measures(found, truth)
    assert torch.allclose(measures["cells_right"], torch.tensor([2 / 3, 2 / 3]).double())
    assert torch.allclose(measures["tableak_accuracy"], torch.tensor([1, 2 / 3]).double())
    assert measures["exact_row"].tolist() == [0, 0]
    assert torch.allclose(measures["worst_number"], torch.tensor([2 / 14, 0]).double(), atol=1e-6)
    assert TABLE.measures(truth, truth)["exact_row"].tolist() == [1, 1]


def test_a_report_shows_the_cells_and_the_measures_by_name() -> None:
    truth = TABLE.encode(ROWS)
    assert TABLE.cells(truth[1]) == [("age", "90"), ("work", "none"), ("score", "-1.5")]
    assert TABLE.measures(truth, truth).keys() == columns.MEASURES.keys() <= FACTS.keys()


def test_stand_ins_are_rows_drawn_from_the_schema() -> None:
    rows = TABLE.stand_ins(4000, Generator().manual_seed(0))
    TABLE.check(rows)
    assert torch.equal(TABLE.snap(rows), rows)
    ages = torch.tensor([float(row["age"]) for row in TABLE.decode(rows)])
    assert 39 < float(ages.mean()) < 42
    assert float((rows[:, 1:4].mean(dim=0) - 1 / 3).abs().max()) < 0.05


def test_controls_need_no_truth_but_its_number() -> None:
    truth, others = TABLE.encode(ROWS), TABLE.stand_ins(50, Generator().manual_seed(0))
    alone, beside = TABLE.controls(truth, None), TABLE.controls(truth, others)
    assert torch.equal(alone["typical_row"], TABLE.middle(2))
    assert torch.equal(beside["other_row"], others[:2])
    typical = TABLE.decode(beside["typical_row"])[0]
    assert typical["age"] == round(sum(float(row["age"]) for row in TABLE.decode(others)) / 50)
    most = others[:, 1:4].sum(dim=0).argmax()
    assert typical["work"] == ("private", "state", "none")[int(most)]


def test_the_schema_prints_as_what_builds_it_again() -> None:
    assert eval(repr(TABLE)) == TABLE
