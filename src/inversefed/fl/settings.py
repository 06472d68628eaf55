"""What a setting is, in words: the scenario of a report, and what is worth knowing about it."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from inversefed.errors import ConfigError
from inversefed.findings import Code
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.clients.dpsgd import DPSGD
from inversefed.fl.clients.views import inner_client
from inversefed.fl.defenses import Defense, acts_on
from inversefed.fl.network import Network
from inversefed.fl.privacy import broken_by, dp_client, privacy_of
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.fl.train_mode import batchnorm_in_train_mode, dropout_in_train_mode
from inversefed.types import Batch, Finding

__all__ = ["describe_observation", "describe_promise", "describe_setting", "promise_findings", "setting_findings"]


def describe_setting(
    network: Network, client: Client, defenses: Sequence[Defense], threat: ThreatModel, truth: Batch, seed: int
) -> Mapping[str, Any]:
    """Say what was audited, in values that JSON can hold."""
    facts = _facts(network, client, threat, truth.images.shape[0], seed)
    return facts | {
        "defenses": [repr(defense) for defense in defenses],
        **describe_promise(client, truth.images.shape[0], defenses),
    }


def describe_observation(observation: Observation, threat: ThreatModel, seed: int) -> dict[str, Any]:
    """Say what came from outside and was audited; what was done to it before is not known."""
    return _facts(observation.network, observation.client, threat, observation.num_examples, seed)


def _facts(network: Network, client: Client, threat: ThreatModel, num_examples: int, seed: int) -> dict[str, Any]:
    return {
        "network": type(network.module).__name__,
        "parameters": sum(weight.numel() for weight in network.params.values()),
        "tensors": len(network.params),
        "num_examples": num_examples,
        "image_shape": list(network.image_shape),
        "num_classes": network.num_classes,
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "loss": repr(network.loss),
        "client": repr(client),
        "defenses": [],
        "threat_model": asdict(threat),
        "seed": seed,
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": str(network.device),
    }


def setting_findings(
    network: Network,
    defenses: Sequence[Defense],
    truth: Batch,
    client: Client = FedSGD(),
    threat: ThreatModel | None = None,
) -> tuple[Finding, ...]:
    """Say what about a setting changes how its figures must be read."""
    found = _client_findings(network, client, ThreatModel() if threat is None else threat, len(truth.images))
    if batchnorm_in_train_mode(network.module):
        found.append(
            Finding(
                Code.BATCHNORM_TRAIN_MODE,
                "warning",
                "BatchNorm runs in train mode: the examples of a batch are coupled through its statistics. The attack "
                "simulates the same mode; a result in eval mode would be an upper bound, not this client's risk.",
            )
        )
    if dropout_in_train_mode(network.module):
        found.append(
            Finding(
                Code.DROPOUT_TRAIN_MODE,
                "warning",
                "Dropout runs in train mode: the attacker does not know the client's masks. Unless the attack searches "
                "them (OptimizedMasks, as in recipes.dropout_inversion()), it simulates draws of its own, and failure "
                "says little. Audit in eval mode as well for an upper bound.",
            )
        )
    frozen = [name for name, weight in network.module.named_parameters() if not weight.requires_grad]
    if frozen:
        message = f"{len(frozen)} of the network's parameters are frozen and not part of the update."
        found.append(Finding(Code.FROZEN, "info", message, {"parameters": frozen[:10]}))
    if defenses and (threat is None or threat.defenses == "unknown"):
        named = ", ".join(f"{defense!r} on the {acts_on(defense)}" for defense in defenses)
        message = f"The attack is not told of the defenses ({named}): one that knows them may recover more."
        evidence = {repr(defense): _first_sentence(defense) for defense in defenses}
        found.append(Finding(Code.DEFENSE_UNKNOWN, "warning", message, evidence))
    found += promise_findings(client, len(truth.images), defenses)
    classes = [] if truth.labels.is_floating_point() else truth.labels.tolist()
    repeated = len(classes) - len(set(map(str, classes)))
    if repeated:
        message = f"{repeated} of the {len(truth.labels)} examples share a label with another one."
        found.append(Finding(Code.REPEATED_LABELS, "info", message))
    return tuple(found)


def promise_findings(client: Client, num_examples: int, defenses: Sequence[Defense] = ()) -> list[Finding]:
    """What a client does by itself so that less leaks, and what that promises."""
    found, private, steps = [], dp_client(client), client.steps(num_examples)
    if steps is not None and steps.clients:
        message = (
            f"{inner_client(client)!r}: the server sees one sum of several clients' updates. The scores are of all "
            "their examples together, and nothing says which client an example is of."
        )
        found.append(Finding(Code.SECURE_AGGREGATION, "info", message))
    if private is not None:
        found.append(_privacy_finding(private, num_examples, broken_by(defenses)))
        if private.poisson_sampling:
            message = (
                "Which examples each local step drew is the client's own: the attack simulates the mean of the draws, "
                "and an example that no step took leaves no trace."
            )
            found.append(Finding(Code.SAMPLING_UNKNOWN, "info", message))
    return found


_NEIGHBORS = {
    "added or removed": "For data that differ by one example added or removed; what divides the sum is fixed.",
    "zeroed": "For data of equally many examples, their number public, of which one adds nothing to the sum.",
}


def _privacy_finding(client: DPSGD, num_examples: int, broken: str) -> Finding:
    """Epsilon of one release and of all of them; a warning where it promises nothing."""
    if not client.noise_multiplier:
        message = (
            "DP-SGD without noise (noise_multiplier=0) is clipping of each example alone: epsilon is infinite, and "
            "nothing is promised."
        )
        return Finding(Code.DIFFERENTIAL_PRIVACY, "warning", message)
    if broken:
        message = f"No epsilon is stated for DP-SGD with these defenses: {broken}."
        return Finding(Code.DIFFERENTIAL_PRIVACY, "warning", message)
    try:
        one, every = privacy_of(client, num_examples)
    except ConfigError as error:
        return Finding(Code.DIFFERENTIAL_PRIVACY, "info", f"Epsilon was not computed: {error}")
    notes = "".join(f" ({note}.)" for note in dict.fromkeys((one.note, every.note)) if note)
    message = (
        f"DP-SGD with noise of {client.noise_multiplier:g} times the clipping norm {client.max_grad_norm:g}. This "
        f"release: {one}, without credit for sampling, since the server knows who took part. All "
        f"{client.accounting.rounds} rounds: {every}. {_NEIGHBORS[one.neighbors]}{notes} The "
        "attack simulates the client without its noise."
    )
    return Finding(
        Code.DIFFERENTIAL_PRIVACY, "info", message, {"per_release": asdict(one), "cumulative": asdict(every)}
    )


def describe_promise(client: Client, num_examples: int, defenses: Sequence[Defense] = ()) -> Mapping[str, Any]:
    """The part of a scenario that says what DP-SGD promises; empty for other clients, or where there is no epsilon."""
    private = dp_client(client)
    if private is None or broken_by(defenses):
        return {}
    try:
        one, every = privacy_of(private, num_examples)
    except ConfigError:
        return {}
    return {"privacy": {"per_release": asdict(one), "cumulative": asdict(every)}}


def _first_sentence(piece: object) -> str:
    return (inspect.getdoc(type(piece)) or "").split("\n\n")[0].replace("\n", " ")


def _client_findings(network: Network, client: Client, threat: ThreatModel, num_examples: int) -> list[Finding]:
    """What the server does not know of the client, or does not get."""
    steps, found = client.steps(num_examples), []
    if threat.client == "unknown":
        message = (
            "The client's settings were hidden from the attack: it cannot simulate the client, and a server that knows "
            "them may recover more."
        )
        found.append(Finding(Code.CLIENT_UNKNOWN, "warning", message))
    elif steps is not None and steps.shuffles and threat.order == "unknown":
        message = (
            "The client shuffles, and the attack does not know its order. An attack that simulates an order of its own "
            "is weaker than one that searches it (RelaxedOrder, PerEpoch)."
        )
        found.append(Finding(Code.ORDER_UNKNOWN, "warning", message))
    sent = client.sent_names(network)
    if len(sent) < len(network.params):
        message = f"The client sends {len(sent)} of {len(network.params)} tensors; the attack sees no others."
        found.append(Finding(Code.PARTIAL_UPDATE, "info", message, {"sent": list(sent)[:10]}))
    return found
