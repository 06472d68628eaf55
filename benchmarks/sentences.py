"""How many sentences of an update are recovered: the table of docs/results/sentences.md.

python -m benchmarks.sentences --json OUT

Small transformers with random weights, sentences by Zipf's law, labels never given, one thread. Each row counts the
first updates in order, failures included. Beside them: updates that say nothing, and sentences with one token changed,
of which none may be called exact.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Generator, nn

from benchmarks import record
from inversefed import FedAvg, FedSGD, Observation, freeze, recipes
from inversefed.attacks.exact.text.outcome import result
from inversefed.controls.null_update import null_observation
from inversefed.errors import InversefedError
from inversefed.fl.clients import Client
from inversefed.fl.losses import CrossEntropy, NextToken
from inversefed.inputs import Tokens
from inversefed.networks.lora import low_rank
from inversefed.zoo.networks.language import Bert, Gpt, Llama

__all__ = ["CASES", "Case", "Options", "Row", "main", "measured"]

LENGTH, VOCABULARY, CLASSES = 20, 20_000, 4


def _frozen(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            part.requires_grad_(False)
    return module


def _adapted(module: nn.Module) -> nn.Module:
    return low_rank(module, 8, ("*query", "*key", "*value"), trained=0.02)


def _language(network: Callable[..., nn.Module], tied: bool) -> Callable[..., nn.Module]:
    return partial(network, every_place=True, tied=tied)


def _thin(module: nn.Module) -> nn.Module:
    return low_rank(module, 8, ("*query", "*value"), trained=0.02)


@dataclass(frozen=True)
class Case:
    """A network, and how many sentences make an update.

    Args:
        network: its class.
        width: of its layers.
        count: sentences of an update.
        trains: what of it is trained.
        language: whether it predicts the next token at every place.
        client: that makes the update.
    """

    network: Callable[..., nn.Module]
    width: int
    count: int
    trains: Callable[[nn.Module], nn.Module] = nn.Module.eval
    language: bool = False
    client: Client = FedSGD()


CASES = {
    "Bert": Case(Bert, 128, 1),
    "Bert, embeddings frozen": Case(Bert, 128, 1, _frozen),
    "Bert, LoRA q, k, v, rank 8": Case(Bert, 128, 1, _adapted),
    "Bert, LoRA q, v, rank 8": Case(Bert, 128, 1, _thin),
    "Bert, 5 local steps, embeddings frozen": Case(Bert, 128, 1, _frozen, client=FedAvg(local_steps=5, lr=1e-3)),
    "Bert, 2": Case(Bert, 128, 2),
    "Bert, 4": Case(Bert, 128, 4),
    "Gpt": Case(Gpt, 128, 1),
    "Gpt, 4": Case(Gpt, 128, 4),
    "Gpt, 8": Case(Gpt, 256, 8),
    "Llama": Case(Llama, 128, 1),
    "Llama, 4": Case(Llama, 128, 4),
    "Gpt, next token, 4": Case(_language(Gpt, tied=False), 128, 4, language=True),
    "Llama, next token, tied embedding, 4": Case(_language(Llama, tied=True), 128, 4, language=True),
}
"""By name."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how many sentences of an update are recovered."""

    updates: int = 10
    """Of each row."""
    json: Path | None = None
    """File for the figures."""


@dataclass(frozen=True)
class Row:
    """What a case came to.

    Args:
        name: of the case.
        sentences: in all.
        right: of them, those with every token right.
        exact: updates whose result is called exact.
        updates: how many there were.
        seconds: of one attack, the mean.
        null_exact: updates that say nothing and were called exact.
        wrong_exact: sentences with one token changed that were called exact.
    """

    name: str
    sentences: int
    right: int
    exact: int
    updates: int
    seconds: float
    null_exact: int
    wrong_exact: int


def measured(name: str, case: Case, updates: int) -> Row:
    """Attack updates of random networks and sentences, and what must not be called exact."""
    space, right, exact, nulls, wrong, seconds = Tokens(LENGTH, VOCABULARY), 0, 0, 0, 0, 0.0
    for seed in range(updates):
        torch.manual_seed(seed)
        module = case.network(VOCABULARY, LENGTH, width=case.width, num_classes=CLASSES)
        loss = NextToken(space.pad) if case.language else CrossEntropy()
        network = freeze(case.trains(module).eval(), space, loss=loss)
        ids = space.stand_ins(case.count, Generator().manual_seed(seed))
        labels = ids if case.language else torch.arange(case.count) % CLASSES
        seen = Observation(network, case.client, case.client(network, ids, labels), case.count)
        began = time.perf_counter()
        try:
            found = recipes.best()(seen, Generator().manual_seed(0))
            right += int((space.errors(found.images, ids).amin(dim=0) == 0).sum())
            exact += found.proven
        except InversefedError:
            pass
        seconds += (time.perf_counter() - began) / updates
        changed = [row[row != space.pad].tolist() for row in ids]
        changed[0][seed % len(changed[0])] = changed[0][seed % len(changed[0])] % (VOCABULARY - 1) + 1
        wrong += result(recipes.token_span(), seen, changed, "one token is another", {}).proven
        try:
            null = null_observation(seen, Generator().manual_seed(seed))
            nulls += recipes.best()(null, Generator().manual_seed(0)).proven
        except InversefedError:
            pass
    return Row(name, updates * case.count, right, exact, updates, seconds, nulls, wrong)


def run(options: Options, command: str = "") -> int:
    """Measure and print, a case a row; 0 if nothing false was called exact."""
    torch.set_num_threads(1)
    print("| network, sentences | right | updates exact | seconds | null updates exact | changed exact |")
    print("|---|---|---|---|---|---|")
    rows = []
    for name, case in CASES.items():
        row = measured(name, case, options.updates)
        counts = f"{row.right}/{row.sentences} | {row.exact}/{row.updates} | {row.seconds:.1f}"
        print(f"| {name} | {counts} | {row.null_exact} | {row.wrong_exact} |", flush=True)
        rows.append(row)
    if options.json is not None:
        document = {"command": command, "machine": record.machine(), "rows": [asdict(row) for row in rows]}
        record.write(options.json, document)
    return int(any(row.null_exact or row.wrong_exact for row in rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if nothing false was called exact, 1 if something was, 2 for wrong usage, 130 if stopped."""
    return record.command("sentences", Options, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
