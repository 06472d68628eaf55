"""Layers that a client keeps to itself (as in FedBN), and the option that says so.

In FedBN (Li et al. 2021, arXiv:2102.07623) layers of BatchNorm stay with the client, in FedPer (Arivazhagan et al.
2019, arXiv:1912.00818) its head does, and where a backbone is only fine-tuned the head is all that is sent.
"""

from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from inversefed.fl.clients import Client, FedAvg
from inversefed.fl.clients.partial import Shares
from inversefed.fl.clients.views import UnknownClient, inner_client
from inversefed.fl.network import Network
from inversefed.updates.described import option

__all__ = ["left_out", "patterns"]

_ENDS = 3
"""Parts at the end of a name that a pattern may stand for."""


def left_out(network: Network, there: Collection[str], client: Client) -> str:
    """Say what the update leaves out, and the option under which it is audited all the same.

    Args:
        network: as it was sent out.
        there: the trained tensors that the update holds; some, not all.
        client: how it was made, by what is known.
    """
    missing = [name for name in network.params if name not in there]
    return (
        f"It leaves out {_what(network, missing)} ({len(missing)} of {len(network.params)} tensors that the network "
        "trains). If the client keeps them to itself, as in FedBN or FedPer, repeat this with "
        f"{_option(network, there, client)}; they are then taken to be as in --weights, which the client's own need "
        "not be. If it sends them, check the file: it has to hold them by their names in the state dict."
    )


def _option(network: Network, there: Collection[str], client: Client) -> str:
    inner, hidden = inner_client(client), ""
    if isinstance(inner, UnknownClient):
        if inner.sends != "gradient":
            inner = FedAvg(local_steps=1, sends=inner.sends)
        hidden = " --unknown-client"
    kept = Shares(inner, patterns(list(network.params), there))
    return f'--client "Shares({option(inner)}, {kept.names!r})"{hidden}'


def _what(network: Network, missing: Sequence[str]) -> str:
    """The layers that tensors are all of, in words."""
    kinds = (
        (nn.modules.batchnorm._BatchNorm, "all layers of BatchNorm"),
        (
            (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm),
            "all layers that normalize",
        ),
    )
    layers = dict(network.module.named_modules())
    for kind, words in kinds:
        those = [name for name in network.params if isinstance(layers[name.rpartition(".")[0]], kind)]
        if those == list(missing):
            return words
    head = [name for name in network.params if name.rpartition(".")[0] == network.head]
    if head and head == list(missing):
        return f"the head, {network.head}"
    if head and [name for name in network.params if name not in head] == list(missing):
        return f"all but the head, {network.head}"
    return repr(missing[0]) + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")


def patterns(names: Sequence[str], kept: Collection[str]) -> tuple[str, ...]:
    """A few patterns of names, as `Shares` takes them, that fit some of the names and no other.

    >>> patterns(["conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "fc.bias"],
    ...          ["conv1.weight", "conv2.weight", "fc.bias"])
    ('!*bn*',)
    """
    those, rest = [name for name in names if name in kept], [name for name in names if name not in kept]
    only, without = _cover(those, rest), [f"!{pattern}" for pattern in _cover(rest, those)]
    return tuple(only if (len(only), len(those)) < (len(without), len(rest)) else without)


def _cover(wanted: Sequence[str], others: Sequence[str]) -> list[str]:
    """Patterns that together fit all that is wanted and nothing else, the widest first."""
    able = {pattern for name in wanted for pattern in _candidates(name)}
    able = {pattern for pattern in able if not any(fnmatchcase(name, pattern) for name in others)}
    fitting = {pattern: {name for name in wanted if fnmatchcase(name, pattern)} for pattern in able}
    left, chosen = set(wanted), []
    while left:
        best = max(sorted(fitting), key=lambda each: (len(fitting[each] & left), not each.startswith("*"), -len(each)))
        chosen.append(best)
        left -= fitting[best]
    return chosen


def _candidates(name: str) -> Iterator[str]:
    """The name itself, what it begins and ends with, and words in it."""
    yield name
    parts = name.split(".")
    for end in range(1, len(parts)):
        yield ".".join(parts[:end]) + ".*"
    for count in range(1, min(_ENDS, len(parts) - 1) + 1):
        yield "*." + ".".join(parts[-count:])
        yield "*." + ".".join([*parts[-count - 1 : -1], "*"])
    for part in parts[:-1]:
        word = part.rstrip("0123456789_")
        if len(word) > 1:
            yield f"*{word}*"
