"""`inversefed demo`: the audit without options, or that of a table, with a few sentences before and after."""

import os
import platform
import shlex
import sys
import textwrap
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from inversefed.cli.options import Audit, Demo

__all__ = ["PICTURE", "ROWS", "Scene", "opened", "run_demo"]

REPORT = "REPORT"
"""Stands in a command for the folder of the demo's report."""


@dataclass(frozen=True)
class Scene:
    """What is shown.

    Args:
        audit: the options of the audit, as `inversefed audit` takes them.
        before: what is attacked, who knows what, and what the attack will do.
        after: what the score and the verdict mean, and what they do not.
        look: what to look at first in the report.
        then: what to try next: each command, and why.
    """

    audit: Audit
    before: tuple[str, ...]
    after: tuple[str, ...]
    look: str
    then: tuple[tuple[str, str], ...]


_UPDATE = (
    "In federated learning a client trains on its own data and sends the server an update instead of the data. An "
    "audit asks what the server can read out of that update."
)
_VERDICT = (
    "The verdict does not rest on the score alone: what was recovered is held against what anybody could guess, and "
    "against what the same attack makes of an update that holds nothing private."
)
_COUNT = (
    "inversefed inspect --network ResNet18 --num-images 4",
    "count what an update can give away, without an attack",
)
_GATE = (f"inversefed gate {REPORT} --max-leakage 3", "hold the report to a limit; exit status 3 where more leaked")

PICTURE = Scene(
    Audit(),
    (
        _UPDATE,
        "What is attacked: one picture, a cat at 32x32 pixels that comes with scikit-image. The client's network is "
        "LeNetZhu, a small LeNet that is not trained yet, and the update is the gradient of its loss on that picture.",
        "Who knows what: the server has the network, its weights, the update and how the client made it. It has "
        "neither the picture nor its label.",
        "The attack is the default one: it reads the network, and chooses a method that is exact where there is one.",
    ),
    (
        "Decibels (peak signal-noise ratio) say how near the recovered picture is to the private one: 10 dB more are a "
        "tenth of the squared error. They count only above pictures that need no update, such as the best constant "
        "color.",
        _VERDICT,
        "This is one picture and a network that is easy to read. A larger network, more pictures in one update or a "
        "defense change the answer, and a picture that this attack does not recover is not thereby private.",
    ),
    "Look first at the two pictures at its top, the private one and the recovered one, and then at what would stop it.",
    (
        ("inversefed audit --images photo.jpg", "a picture of your own"),
        ('inversefed audit --defenses "GaussianNoise(0.1)" --time-budget 1m', "the same update with noise on it"),
        _COUNT,
        _GATE,
        ("inversefed demo --table", "rows of a table instead of a picture"),
    ),
)
"""The audit of a picture."""

ROWS = Scene(
    Audit(table=Path("sklearn:wine"), network="mlp:200,200", num_images=8),
    (
        _UPDATE,
        "What is attacked: 8 rows of a table of wines that comes with scikit-learn, 13 measured numbers each. The "
        "client's network is a perceptron with two hidden layers of 200 outputs that is not trained yet, and the "
        "update is the gradient of its loss on the 8 rows together.",
        "Who knows what: the server has the network, its weights, the update and how the client made it, and the "
        "columns with their ranges. It has neither one of the 8 rows nor a label.",
        "The attack is the default one: it reads the network, and chooses a method that is exact where there is one.",
    ),
    (
        "Decibels say how near the recovered rows are to the private ones, with every column between 0 and 1: 10 dB "
        "more are a tenth of the squared error. They count only above rows that need no update, such as the typical "
        "row of the table.",
        _VERDICT,
        "This is one batch of one table. A larger batch, another network or a defense change the answer, and rows that "
        "this attack does not recover are not thereby private.",
    ),
    "Look first at the recovered rows beside the private ones, and then at what would stop it.",
    (
        (
            "inversefed audit --table people.csv --target risk --network mlp:200,200 --num-images 8",
            "a table of your own, and the column that the network tells",
        ),
        (
            "inversefed audit --table sklearn:wine --network mlp:200,200 --num-images 8 "
            '--defenses "GaussianNoise(0.1)" --time-budget 1m',
            "the same update with noise on it",
        ),
        _GATE,
        ("inversefed demo", "a picture instead of rows"),
    ),
)
"""The audit of rows of a table."""


def run_demo(options: Demo) -> int:
    """Tell, audit, tell what it means, and open the report where there is a display.

    Returns:
        As `inversefed audit` does.

    Raises:
        InputError: the output folder holds something, or scikit-learn is not installed for its table.
    """
    scene = ROWS if options.table else PICTURE
    _say(scene.before)
    print("This takes a few seconds, more on a busy machine ..", flush=True)

    from inversefed.cli.audit import carry_out, exit_status, free_folder  # torch comes with it, after the first words

    folder = options.output or free_folder("demo")
    report = carry_out(replace(scene.audit, output=folder, overwrite=options.overwrite, quiet=True))
    verdict = () if report.verdict is None else (report.verdict.sentence,)
    _say((report.headline, *verdict), first="\n")
    _say(scene.after)
    page = folder / "report.html"
    _say((f"The report is {page}. {scene.look} All figures are in {folder / 'report.json'}.",))
    if opened(page, options.open):
        print("It is open in your browser.")
    print("What to try next:")
    for command, why in scene.then:
        print(f"  {command.replace(REPORT, shlex.quote(str(folder)))}\n      {why}")
    return exit_status(report)


def opened(page: Path, wish: str) -> bool:
    """Show a page in a browser, if that is wished and there is one.

    Args:
        page: the file.
        wish: `"on"`, `"off"`, or `"auto"` for where somebody sits at a terminal with a display.

    Returns:
        Whether a browser took it; where there is none, that is no error.
    """
    display = platform.system() in ("Darwin", "Windows") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if wish == "off" or (wish == "auto" and not (display and sys.stdout.isatty())):
        return False
    try:
        return webbrowser.open(page.absolute().as_uri())
    except (webbrowser.Error, OSError):
        return False


def _say(sentences: Sequence[str], first: str = "") -> None:
    print(first + "\n\n".join(textwrap.fill(each, 88, break_long_words=False) for each in sentences) + "\n")
