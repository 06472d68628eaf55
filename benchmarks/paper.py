"""Table 1 of "Inverting Gradients", with the published figures beside ours (Geiping et al., NeurIPS 2020).

    python -m benchmarks.paper --data-path DATA --limit 10

It is the plan `paper-table1` at a size that is stated above the table: fewer pictures, fewer iterations, a shorter
training. The ledger is kept, so that the same command goes on where it was stopped, and a larger `--limit` adds only
what is new. Figures of other pictures than CIFAR-10's own are no reproduction, and the table says so.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import record
from inversefed.experiments.ledger import Ledger, Standing
from inversefed.experiments.local import LocalProcesses
from inversefed.experiments.plan import ModelSpec, Plan
from inversefed.experiments.plan_file import read_plan, shipped
from inversefed.experiments.planning import add_run, write_jobs
from inversefed.experiments.table import Row, markdown, row_of, summary

__all__ = ["Options", "main", "reduced", "table"]

PUBLISHED: Mapping[tuple[str, bool, str], str] = {
    ("LeNetZhu", False, "dlg"): "46.25 ± 12.66",
    ("LeNetZhu", True, "dlg"): "13.24 ± 5.44",
    ("ResNet20-4", False, "dlg"): "10.29 ± 5.38",
    ("ResNet20-4", True, "dlg"): "6.90 ± 2.80",
    ("LeNetZhu", False, "geiping"): "18.00 ± 3.33",
    ("LeNetZhu", True, "geiping"): "18.08 ± 4.27",
    ("ResNet20-4", False, "geiping"): "19.83 ± 2.96",
    ("ResNet20-4", True, "geiping"): "13.95 ± 3.38",
}
"""PSNR in dB, mean and deviation over the first hundred validation pictures of CIFAR-10: network, trained, attack."""


@dataclass(frozen=True)
class Options:
    """The paper's Table 1 at a smaller size."""

    data_path: Path = Path("~/data")
    """Folder of CIFAR-10, or of pictures by class in its place."""
    limit: int = 10
    """How many pictures; the paper has 100."""
    networks: tuple[str, ...] = ("LeNetZhu",)
    """Which networks; ResNet20-4 takes some hundred times as long."""
    epochs: int = 20
    """Of training; the paper's networks have 120."""
    max_iterations: int | None = None
    """Of each attack, instead of its own."""
    folder: Path = Path("runs/paper")
    """Where ledger, reports and table go."""
    workers: int | None = None
    """Processes; by default one a core."""


def reduced(options: Options) -> Plan:
    """The plan at the size that the options say."""
    plan = read_plan(shipped()["paper-table1"], options.data_path)
    models = tuple(_shorter(each, options.epochs) for each in plan.models if each.network in options.networks)
    targets = tuple(replace(each, limit=min(options.limit, each.limit or options.limit)) for each in plan.targets)
    steps = "all" if options.max_iterations is None else str(options.max_iterations)
    name = f"{plan.name} {options.limit} pictures {options.epochs} epochs {steps} iterations"
    return replace(plan, name=name, models=models, targets=targets, max_iterations=options.max_iterations)


def _shorter(model: ModelSpec, epochs: int) -> ModelSpec:
    return model if model.train is None else replace(model, train=replace(model.train, epochs=epochs))


def table(rows: Sequence[Row], plan: Plan, options: Options) -> str:
    """The table in Markdown, with what it was made of."""
    found: list[Row] = []
    for row in summary(rows):
        network, *trained = str(row["network"]).split(", ")
        attack = str(row["attack"]).partition("(")[0]
        interval = [row["peak_signal_noise_ratio_low"], row["peak_signal_noise_ratio_high"]]
        ours = row["peak_signal_noise_ratio"]
        found.append(
            {
                "network": network,
                "weights": trained[0] if trained else "untrained",
                "attack": attack,
                "published, dB": PUBLISHED.get((network, bool(trained), attack)),
                "ours, dB": None if ours is None else f"{ours:.2f} ± {row['peak_signal_noise_ratio_sd'] or 0:.2f}",
                "95 % interval": "" if None in interval else f"{interval[0]:.2f} to {interval[1]:.2f}",
                "n": row["n"],
                "failed": row["failed"],
            }
        )
    source = plan.targets[0].dataset
    data = "CIFAR-10's first validation pictures" if source == "CIFAR10" else (
        f"**not CIFAR-10's own pictures** ({source}), so that the columns are of different data"
    )  # fmt: skip
    iterations = "its own number of" if options.max_iterations is None else str(options.max_iterations)
    size = (
        f"Reduced size: {plan.targets[0].limit} pictures instead of 100, {options.epochs} epochs of training instead "
        f"of 120, each attack with {iterations} iterations; {data}. PSNR, mean and deviation over pictures."
    )
    return f"{plan.note}\n\n{size}\n\n{markdown(found)}"


def run(options: Options, command: str) -> int:
    """Carry the plan out, or go on with it, and write the table."""
    plan = reduced(options)
    ledger = Ledger(str(options.folder / "ledger.db"))
    there = {each.name for each in ledger.runs()}
    found = ledger.run(plan.name) if plan.name in there else add_run(ledger, plan)
    if not found.planned:
        write_jobs(ledger, found, lambda done, total, text: _say(f"{done}/{total} {text}"))
    done = -1

    def look(now: Standing) -> None:
        nonlocal done
        if now.total - now.open > done:
            done = now.total - now.open
            _say(f"{done}/{now.total} audits")

    standing = LocalProcesses(options.workers)(ledger, found, look)
    text = table([row_of(job, content) for job, content in ledger.rows(found)], plan, options)
    machine = record.machine()
    text += f"\n`{command}`, {machine['cores_allowed']} cores, one thread an audit, torch {machine['torch']}.\n"
    (options.folder / "table1.md").write_text(text, encoding="utf-8")
    ledger.close()
    print(text)
    return 1 if standing.counts["failed"] else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, measure, and return the exit status."""
    return record.command("paper", Options, run, arguments, "what was finished is kept: the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
