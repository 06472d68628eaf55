"""An input space that no file of the package names is audited like pictures, end to end, or refused by name."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Generator, Tensor, nn

import inversefed
from inversefed import Batch, recipes
from inversefed.errors import InputError, InversefedError, UnsupportedNetworkError
from inversefed.inputs import Images, InputSpace, Tokens
from inversefed.inputs.real import check_real
from inversefed.report import gallery
from inversefed.report.gallery import Cell
from inversefed.zoo.networks.language import Bert


@dataclass(frozen=True)
class Readings:
    """So many readings of instruments, one after the other."""

    width: int

    @property
    def noun(self) -> str:
        return "reading"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width,)

    def check(self, inputs: Tensor) -> None:
        check_real(inputs, self.shape, "readings", "divide by the end of the scale")

    def normalization(self) -> tuple[float, float]:
        return 0.5, 0.25

    def middle(self, count: int) -> Tensor:
        return torch.full((count, *self.shape), 0.5)

    def snap(self, inputs: Tensor) -> Tensor:
        return inputs.clamp(0, 1)

    def stand_ins(self, count: int, random: Generator) -> Tensor:
        return torch.rand((count, *self.shape), generator=random)

    def controls(self, truth: Tensor, others: Tensor | None) -> Mapping[str, Tensor]:
        plain = {"middle": torch.full_like(truth, 0.5)}
        return plain if others is None else plain | {"mean": others.mean(dim=0, keepdim=True).expand_as(truth).clone()}

    def cells(self, example: Tensor) -> Sequence[tuple[str, str]]:
        return [(f"picture <{place}>", f"{float(value):.3f}") for place, value in enumerate(example)]

    def measures(self, found: Tensor, truth: Tensor) -> Mapping[str, Tensor]:
        return {"readings_right": ((found - truth).abs() < 1e-3).float().mean(dim=1)}


def perceptron(kink: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), kink(), nn.Linear(40, 30), kink(), nn.Linear(30, 3))


@pytest.fixture(scope="module")
def private() -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(0)
    return torch.rand(3, 12, generator=generator), torch.tensor([2, 0, 1])


def test_a_space_is_a_protocol() -> None:
    assert isinstance(Readings(3), InputSpace) and isinstance(Images((3, 4, 4)), InputSpace)
    with pytest.raises(InputError, match="channels, height, width"):
        Images((3, 4))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kink", [nn.ReLU, nn.GELU])
def test_examples_of_a_strangers_space_are_recovered_with_their_labels(private, kink: type, count: int) -> None:
    rows, labels = private[0][:count], private[1][:count]
    report = inversefed.audit(perceptron(kink), rows, labels, inputs=Readings(12))
    assert report.verdict.figures.exact and report.labels.tolist() == labels.tolist()
    assert report.limit is not None and report.limit.of == 12 and report.limit.determined == (12,) * count
    assert torch.allclose(report.images, rows, atol=1e-5)


def test_sentences_of_another_length_than_the_truth_are_shown_beside_it() -> None:
    space = Tokens(6, 40)
    torch.manual_seed(0)
    module = Bert(vocabulary=40, length=6, num_classes=3).eval()
    report = inversefed.audit(module, space.ids([[7, 21, 30], [5]]), torch.tensor([2, 0]), inputs=space, nulls=0)
    (shown,) = gallery.cells(report)
    assert shown.lines[0][1] == (Cell("1", "7", "7"), Cell("1", "5", "5")) and shown.lines[2][1][1] is None
    images = report.reconstruction.images.clone()
    images[images == 30] = 0
    images[images[:, 0] == 5, 1] = 9
    other = replace(report, reconstruction=replace(report.reconstruction, images=images))
    (shown,) = gallery.cells(other)
    assert [cell.right for _, (cell, _) in shown.lines] == [True, True, False]
    assert shown.lines[1][1][1] == Cell("2", "9", "", False) and shown.lines[2][1][0] == Cell("3", "", "30", False)
    assert "truth: 30" in other.to_html() and "inversefed defend" not in other.to_html()


def test_the_report_speaks_of_them_and_shows_their_cells(private, tmp_path) -> None:
    others = Batch(torch.rand(4, 12, generator=Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0]))
    report = inversefed.audit(perceptron(nn.ReLU), *private, inputs=Readings(12), others=others, nulls=1)
    content = json.loads(report.to_json())
    assert content["scores"]["readings_right"] == [1.0] * 3 and "structural_similarity" not in content["scores"]
    assert set(content["baselines"]) >= {"middle", "mean"} and content["scenario"]["inputs"].endswith("(width=12)")
    assert "3 of 3 readings were recovered" in report.headline and "reading 0" in report.summary()
    page = report.to_html()
    assert "picture &lt;0&gt;" in page and "Reading 2, label 1, true label 1" in page  # a cell's own name is kept
    said = page.replace("picture &lt;", "").replace("--num-images", "").replace("--no-images", "")
    assert "picture" not in said.partition("<section")[0].partition("<body")[2]
    assert sorted(path.name for path in report.save(tmp_path / "run").iterdir()) == [
        "report.html", "report.json", "report.md",
    ]  # fmt: skip
    scenario = inversefed.Scenario.from_dict(content["scenario"], trust_code=True)
    assert scenario.inputs == Readings(12)
    assert dataclasses.replace(scenario, inputs=Readings(13)).hash() != scenario.hash()
    again = inversefed.audit(scenario.of(perceptron(nn.ReLU), *private, others, scenario.mean, scenario.std))
    assert torch.equal(again.images, report.images) and again.scenario["hash"] == report.scenario["hash"]


def test_what_is_no_such_example_is_refused(private) -> None:
    module = perceptron(nn.ReLU)
    for rows, said in (
        (private[0] * 9, "end of the scale"),
        (private[0][:, :5], r"\[n, 12\]"),
        (private[0][:0], "none"),
    ):
        with pytest.raises(InputError, match=said):
            inversefed.audit(module, rows, private[1][: len(rows)], inputs=Readings(12))
    with pytest.raises(InputError, match="need a word on what they are"):
        inversefed.audit(module, *private)
    with pytest.raises(InputError, match="others must be of the network's inputs"):
        inversefed.audit(module, *private, inputs=Readings(12), others=Batch(torch.rand(2, 9), torch.tensor([0, 1])))


OF_PICTURES = [recipes.geiping(max_iterations=2), recipes.spectral(2), recipes.deep_prior(1, 2), recipes.april()]


@pytest.mark.parametrize("attack", OF_PICTURES, ids=["geiping", "spectral", "deep_prior", "april"])
def test_pieces_that_know_pictures_are_refused_by_our_own_error(private, attack: object) -> None:
    with pytest.raises(InversefedError):
        inversefed.audit(perceptron(nn.ReLU), *private, inputs=Readings(12), attack=attack, nulls=0)


def test_rows_read_as_pictures_of_one_place() -> None:
    network = inversefed.freeze(perceptron(nn.ReLU), Readings(12))
    assert network.grid == (12, 1, 1) and network.mean.shape == (12,) and float(network.std[0]) == 0.25
    with pytest.raises(UnsupportedNetworkError, match="readings of shape"):
        inversefed.freeze(perceptron(nn.ReLU), Readings(9))
