"""`inversefed doctor`: what is installed, on what machine, and whether an audit recovers what it should.

What is printed is made to be pasted where strangers read it: versions, counts and figures, but no path, no name of a
user or a machine, no variable of the environment, and no message of an error, which could hold any of them.
"""

import json
import logging
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from inversefed.cli.options import Audit, Doctor

__all__ = ["GIVES", "Package", "SelfTest", "packages", "run_doctor", "self_test"]

GIVES: Mapping[str, str] = {
    "dp": "epsilon of DP-SGD, and what no attack on it exceeds",
    "flower": "strategies and mods that audit a federation of Flower",
    "lightning": "a callback that captures updates of Lightning's Trainer",
    "mlflow": "scores and loss curves of a sweep for MLflow",
    "nvflare": "filters that audit a federation of NVIDIA FLARE",
    "parquet": "tables and results as Parquet files",
    "postgres": "a ledger that several machines write to",
    "ray": "audits on several machines",
    "serve": "a ledger in the browser (inversefed serve)",
    "shapes": "shapes in annotations, checked while you write a piece",
    "tables": "scikit-learn's tables (--table sklearn:wine)",
    "tensorboard": "scores and loss curves of a sweep for TensorBoard",
    "text": "sentences from the shell (--text FILE --tokenizer tokenizer.json)",
    "transformers": "a callback that captures updates of the Trainer of transformers",
}
"""Every extra of the package by its name, and what one has of it."""

BUDGET = "20s"
"""Time for the self-test, which needs a few seconds where all is well."""


@dataclass(frozen=True)
class Package:
    """A package that this one depends on.

    Args:
        name: as the registry has it.
        needs: the versions that do, such as `">=2.10"`.
        extra: the extra that it belongs to; empty for what every installation needs.
        installed: the version that is there, `None` where none is.
    """

    name: str
    needs: str
    extra: str = ""
    installed: str | None = None

    @property
    def enough(self) -> bool:
        """Whether a version is installed that does; a release candidate counts as its release."""
        return self.installed is not None and _release(self.installed) >= _release(self.needs)

    def __str__(self) -> str:
        if self.installed is None:
            return f"{self.name}{self.needs} missing"
        return f"{self.name} {self.installed}" + ("" if self.enough else f" (needs {self.needs})")


@dataclass(frozen=True)
class SelfTest:
    """How the self-test ended.

    Args:
        passed: whether the picture was recovered, by the verdict of its audit.
        peak_signal_noise_ratio: of the recovered picture, dB; `None` where the audit did not come to one.
        best_constant_color: what a picture of one color scores at best, dB.
        seconds: of the attack.
        device: where it ran, such as `"cpu"`.
        error: the kind of error that ended it; empty for none.
    """

    passed: bool = False
    peak_signal_noise_ratio: float | None = None
    best_constant_color: float | None = None
    seconds: float | None = None
    device: str = ""
    error: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"failed: {self.error}; `inversefed doctor --verbose` shows where"
        return (
            f"{'passed' if self.passed else 'failed'}: a bundled picture was {'' if self.passed else 'not '}recovered "
            f"from its gradient: {self.peak_signal_noise_ratio:.1f} dB, where the best constant color scores "
            f"{self.best_constant_color:.1f} dB ({self.seconds:.1f} s on {self.device})"
        )


def run_doctor(options: Doctor) -> int:
    """Look, test, print.

    Returns:
        0 where every package that is needed is there in a version that does, and the self-test recovers its picture,
        else 1.
    """
    found, machine, tested = packages(), {}, SelfTest()
    try:
        machine = _machine()
        tested = self_test()
    except Exception as error:  # whatever is broken here is what somebody wants to know
        logging.getLogger(__name__).info("the self-test ended here", exc_info=True)
        tested = SelfTest(error=type(error).__name__)
    if options.json:
        by_extra = {
            name: [{**asdict(each), "enough": each.enough} for each in found if each.extra == name]
            for name in ("", *GIVES)
        }
        versions = {"inversefed": version("inversefed"), "python": platform.python_version()}
        told = {**versions, "packages": by_extra.pop(""), "extras": by_extra, "machine": machine}
        print(json.dumps({**told, "self_test": asdict(tested)}, indent=2))
    else:
        print("\n".join(_lines(found, machine, tested)))
    return int(bool(_wanting(found)) or not tested.passed)


def packages() -> tuple[Package, ...]:
    """The packages that this installation says it needs, and those of its extras."""
    found = []
    for requirement in requires("inversefed") or ():
        read = re.match(r"([\w.-]+)(?:\[.*?\])?\s*([^;\s]*)\s*(?:;.*extra == ['\"]([\w-]+))?", requirement)
        if read is not None:
            try:
                installed = version(read[1])
            except PackageNotFoundError:
                installed = None
            found.append(Package(read[1], read[2], read[3] or "", installed))
    return tuple(found)


def self_test() -> SelfTest:
    """The audit that `inversefed audit` makes without options, in a few seconds; nothing is written."""
    from inversefed.cli.audit import loaded
    from inversefed.cli.flags import pick_device
    from inversefed.pipeline import audit

    report = audit(loaded(Audit(time_budget=BUDGET)))
    recovered, constant = (
        float(scores["peak_signal_noise_ratio"].min()) for scores in (report.scores, report.baselines["constant"])
    )
    passed = report.verdict is not None and report.verdict.leaked
    return SelfTest(passed, recovered, constant, report.seconds, str(pick_device("auto")))


def _machine() -> dict[str, str]:
    """What audits run on."""
    import torch

    from inversefed.attacks.search.memory import available_bytes
    from inversefed.cli.flags import pick_device
    from inversefed.report.environment import describe

    told = describe()
    kind = torch.accelerator.current_accelerator()
    each = range(0 if kind is None else torch.accelerator.device_count())
    cuda = kind is not None and kind.type == "cuda"
    shown = [f"{kind}:{place}" + (f" {torch.cuda.get_device_name(place)}" if cuda else "") for place in each]
    return {
        **{name: told[name] for name in ("torch", "system", "machine", "cores", "threads")},
        "free_memory": f"{available_bytes(torch.device('cpu')) / 2**30:.1f} GiB",
        "accelerators": ", ".join(shown) or "none",
        "device": str(pick_device("auto")),
    }


def _lines(found: tuple[Package, ...], machine: Mapping[str, str], tested: SelfTest) -> list[str]:
    needed = ", ".join(str(each) for each in found if not each.extra)
    lines = [f"inversefed {version('inversefed')}, python {platform.python_version()}", needed]
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in machine.items()]
    lines += ["", "extras, each by pip install 'inversefed[NAME]':"]
    for name, gives in GIVES.items():
        own = [each for each in found if each.extra == name]
        there = bool(own) and all(each.enough for each in own)
        lines.append(f"  {'yes' if there else 'no ':4}{name:13}{gives}; {', '.join(map(str, own))}")
    wanting = _wanting(found)
    if wanting:
        named = " ".join(f"'{each.name}{each.needs}'" for each in wanting)
        lines += ["", f"inversefed needs other versions than these: {', '.join(map(str, wanting))}"]
        lines += [f"  pip install --upgrade {named}"]
    return [*lines, "", f"self-test {tested}"]


def _wanting(found: tuple[Package, ...]) -> list[Package]:
    """What every installation needs, and is not there in a version that does."""
    return [each for each in found if not each.extra and not each.enough]


def _release(text: str) -> tuple[int, ...]:
    """The numbers of the release in `"2.10.0+cpu"` or `">=2.10"`; zeros at the end do not count."""
    read = re.search(r"\d+(?:\.\d+)*", text)
    numbers = [] if read is None else [int(each) for each in read[0].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
