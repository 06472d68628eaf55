"""`inversefed list`: what can be chosen by name, a line each."""

import inspect
from collections.abc import Mapping
from typing import Any

from inversefed.cli.options import List
from inversefed.specs import registry

__all__ = ["run_list"]


def run_list(options: List) -> int:
    """Print the names of a kind, with their arguments and the first sentence of their documentation.

    Of attacks also the paper, what they need and what they cost, as the documentation of each recipe has them.
    """
    for name, about in sorted(_listed(options.what).items(), key=lambda item: item[0].lower()):
        print(f"{name}  {about}".rstrip())
    return 0


def _listed(what: str) -> Mapping[str, str]:
    if what == "networks":
        from inversefed.zoo import networks

        sentences = dict.fromkeys(networks.TRANSFORMERS, "for sentences; with a width, such as :128")
        return {**dict.fromkeys(networks.names(), ""), **sentences}
    if what == "datasets":
        from inversefed.zoo import datasets

        return dict.fromkeys(datasets.names(), "")
    if what == "plans":
        from inversefed.experiments.plan_file import read_plan, shipped

        return {name: read_plan(file).note for name, file in shipped().items()}
    if what == "metrics":
        from inversefed.evaluation import metrics

        return {name: _sentence(getattr(metrics, name)) for name in metrics.__all__}
    pieces = registry.choices("loss" if what == "losses" else what.removesuffix("s"))
    if what == "attacks":
        return {
            name: "\n    ".join([_describe(piece), *facts(piece)]) for name, piece in pieces.items() if facts(piece)
        }
    return {name: _describe(piece) for name, piece in pieces.items()}


def facts(piece: Any) -> list[str]:
    """The lines of a piece's documentation that name its paper, its needs and its cost; none for a part of a recipe."""
    lines = (inspect.getdoc(piece) or "").splitlines()
    return [line for line in lines if line.startswith(("Paper: ", "Needs: ", "Cost: "))]


def _describe(piece: Any) -> str:
    parameters = inspect.signature(piece).parameters.values()
    shown = ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    return f"({shown})  {_sentence(piece)}"


def _sentence(piece: Any) -> str:
    return (inspect.getdoc(piece) or "").split("\n\n")[0].replace("\n", " ")
