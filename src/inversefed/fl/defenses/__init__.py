"""Defenses: what a client does to its data, its network or its finished update so that less leaks.

    update* = defend_update(client(defend_network(network), defend_data(images*, labels*)))

`protocols` says what each of the three kinds takes; one `defenses=` tuple takes all of them. Per-example clipping
(DP-SGD) and secure aggregation change how an update is computed: they are clients.
"""

from inversefed.fl.defenses.augmentation import ATS
from inversefed.fl.defenses.clipping import Clip
from inversefed.fl.defenses.local_dp import local_dp as local_dp
from inversefed.fl.defenses.mixing import Mixup
from inversefed.fl.defenses.noise import GaussianNoise, LaplaceNoise
from inversefed.fl.defenses.precode import PRECODE, Dropout
from inversefed.fl.defenses.protocols import Context as Context
from inversefed.fl.defenses.protocols import DataDefense as DataDefense
from inversefed.fl.defenses.protocols import Defense as Defense
from inversefed.fl.defenses.protocols import NetworkDefense as NetworkDefense
from inversefed.fl.defenses.protocols import UpdateDefense as UpdateDefense
from inversefed.fl.defenses.protocols import acts_on as acts_on
from inversefed.fl.defenses.protocols import data_defenses as data_defenses
from inversefed.fl.defenses.protocols import network_defenses as network_defenses
from inversefed.fl.defenses.protocols import update_defenses as update_defenses
from inversefed.fl.defenses.pruning import RandomPruning, TopK
from inversefed.fl.defenses.quantization import SignQuantization, StochasticQuantization, UniformQuantization
from inversefed.fl.defenses.selective_sharing import ExcludeVars, PercentilePrivacy, SVTPrivacy
from inversefed.fl.defenses.soteria import Soteria

__all__ = [
    "ATS",
    "PRECODE",
    "Clip",
    "Dropout",
    "ExcludeVars",
    "GaussianNoise",
    "LaplaceNoise",
    "Mixup",
    "PercentilePrivacy",
    "RandomPruning",
    "SVTPrivacy",
    "SignQuantization",
    "Soteria",
    "StochasticQuantization",
    "TopK",
    "UniformQuantization",
]
