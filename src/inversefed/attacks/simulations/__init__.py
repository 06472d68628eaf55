"""How the attacker simulates the client, above all where something about the client is unknown.

    loss = match(predicted, observed) + penalty,    predicted = simulation(observation, z, x, y)

`z` are further variables, searched together with the images: a point between two weights, the pictures as each epoch
saw them, dropout's masks. Where nothing of that kind is unknown, each of them runs the client as it is.

Zhu et al. (2023), "Surrogate model extension (SME)", ICML, arXiv:2306.00127; Dimitrov et al. (2022), "Data leakage in
federated averaging", TMLR, arXiv:2206.12395; Scheliga et al. (2022), "Dropout is NOT all you need to prevent gradient
leakage", arXiv:2208.06163. A simulation of a kind is a file: `known`, `surrogate`, `orders`, `masks`,
`known_features`, `defended`.
"""

from inversefed.attacks.simulations.defended import Augmented, Clipped, Leaving, Noised, Unmixed
from inversefed.attacks.simulations.known import KnownClient
from inversefed.attacks.simulations.masks import AveragedMasks, OptimizedMasks
from inversefed.attacks.simulations.orders import PerEpoch, RelaxedOrder
from inversefed.attacks.simulations.simulation import Compared as Compared
from inversefed.attacks.simulations.simulation import Simulation as Simulation
from inversefed.attacks.simulations.surrogate import Surrogate

__all__ = [
    "Augmented",
    "AveragedMasks",
    "Clipped",
    "KnownClient",
    "Leaving",
    "Noised",
    "OptimizedMasks",
    "PerEpoch",
    "RelaxedOrder",
    "Surrogate",
    "Unmixed",
]
