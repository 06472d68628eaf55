"""The small parts of a report: plain values, tables, sentences, pictures, the curve."""

import io
from enum import StrEnum
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from inversefed.report.png import difference, png
from inversefed.report.sentences import headline, pairing, recovery, status_note
from inversefed.report.tables import tables
from inversefed.report.to_json import plain
from inversefed.types import Status

INF, NAN = float("inf"), float("nan")


class Color(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (torch.tensor([1.0, NAN, INF, -INF]), [1.0, None, None, None]),
        (torch.tensor(2), 2),
        (torch.tensor(True), True),
        ({1: (NAN, {"a": Color.RED})}, {"1": [None, {"a": "red"}]}),
        ({3, 1, 2}, [1, 2, 3]),
        (Path("a/b"), "a/b"),
        (numpy.float64("nan"), None),
        (None, None),
        (torch.float32, "torch.float32"),
    ],
)
def test_plain(value, expected):
    assert plain(value) == expected


def test_plain_enum_is_a_plain_string():
    assert type(plain(Status.NON_FINITE)) is str


def psnr(*values: float) -> dict[str, torch.Tensor]:
    return {"peak_signal_noise_ratio": torch.tensor(values)}


@pytest.mark.parametrize(
    ("decibels", "expected"),
    [
        (23.0, "recovered"),
        (22.99, "recovered in part"),
        (21.0, "recovered in part"),
        (20.99, "not recovered"),
        (5.0, "not recovered"),
        (NAN, "not recovered"),
    ],
)
def test_recovery_is_measured_from_the_better_control(decibels, expected):
    assert recovery(decibels - 20.0) == expected
    said = headline(psnr(decibels), {"gray": psnr(12.0), "constant": psnr(20.0)}, 1)
    assert f"picture was {expected} from" in said


def test_headline_names_both_controls():
    assert headline(psnr(24.26), {"gray": psnr(11.84), "constant": psnr(13.0)}, 1) == (
        "A picture was recovered from the client's update: 24.3 dB, where a gray image scores 11.8 dB "
        "and the best constant color scores 13.0 dB."
    )


def test_headline_counts_each_picture_against_its_own_control():
    said = headline(psnr(30.0, 14.0, 14.0, 14.0), {"gray": psnr(10.0, 10.0, 12.5, 14.0)}, 4)
    expected = "2 of 4 pictures were recovered from the client's update, 1 more in part: 18.0 dB on average"
    assert said.startswith(expected)
    assert headline(psnr(10.0, 10.0), {"gray": psnr(10.0, 10.0)}, 2).startswith("None of 2 pictures were recovered")


def test_headline_without_a_truth_or_without_a_number():
    assert headline({}, {}, 1) == "The attack produced 1 picture, and there is no truth to compare with."
    assert "3 pictures," in headline({}, {}, 3)
    assert "no finite score" in headline(psnr(NAN), {"gray": psnr(10.0)}, 1)


def test_notes():
    assert pairing(1) == "" and "PSNR" in pairing(2)
    assert {status for status in Status if not status_note(status)} == {Status.FINISHED, Status.CONVERGED}


def test_tables_keep_the_mean_honest_and_leave_out_missing_controls():
    scores = {"label_accuracy": torch.tensor([1.0, 0.0]), **psnr(20.0, NAN)}
    labels, decibels = tables(scores, {"gray": psnr(10.0, 12.0)})
    assert labels.columns == ("recovered",) and labels.mean == ("mean", (0.5,))
    assert decibels.columns == ("recovered", "gray") and decibels.cells(decibels.mean) == ["n/a", "11.00"]
    assert decibels.best == "higher is better" and decibels.heading.endswith(", dB")


def test_a_metric_without_facts_is_still_shown():
    (table,) = tables({"their_metric": torch.tensor([1.25])}, {})
    assert table.heading == "their_metric" and table.cells(table.rows[0]) == ["1.25"]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (2, "L"), (5, "L")])
def test_png_keeps_size_and_rounds(channels, mode):
    image = torch.linspace(-0.2, 1.2, channels * 35).view(channels, 5, 7)
    opened = Image.open(io.BytesIO(png(image)))
    assert (opened.size, opened.mode) == ((7, 5), mode)
    shown = image if channels in (1, 3) else image.mean(dim=0, keepdim=True)
    expected = (shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
    numpy.testing.assert_array_equal(numpy.asarray(opened), expected)


def test_png_of_nan_is_black_and_half_precision_works():
    image = torch.full((1, 2, 2), NAN, dtype=torch.float16)
    image[0, 0, 0] = 1
    assert numpy.asarray(Image.open(io.BytesIO(png(image)))).tolist() == [[255, 0], [0, 0]]


def test_difference_compares_what_is_shown():
    assert difference(torch.full((1, 1, 1), -3.0), torch.full((1, 1, 1), 0.25)).item() == 0.25
