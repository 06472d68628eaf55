"""What an update of a client is a sum of."""

from inversefed.fl.clients.fedavg import Client, FedAvg, FedSGD
from inversefed.fl.clients.local_optimizers import LocalSGD
from inversefed.fl.clients.partial import trainer
from inversefed.fl.clients.secure_sum import SumOfClients

__all__ = ["passes"]


def passes(client: Client, num_examples: int) -> int | None:
    """How many forward passes of one example the update sums over; `None` where it is no sum of gradients."""
    return _passes(trainer(client), num_examples)


def _passes(client: Client, examples: int) -> int | None:
    if isinstance(client, FedSGD):
        return examples
    if isinstance(client, SumOfClients):
        counts = [_passes(client.client, size) for size in client.parts(examples)]
        return None if None in counts else sum(count or 0 for count in counts)
    if not isinstance(client, FedAvg) or client.proximal:
        return None
    if isinstance(client.optimizer, LocalSGD) and not client.optimizer.weight_decay:
        slices = client.slices(examples)
        return sum(int(part.stop - part.start) for part in slices)
    return None
