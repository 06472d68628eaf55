"""The 2020 code's own figures: 32 small attacks that it ran on the CPU, one thread, float32 (`reconstructions_2020`).

Two comparisons of every attack, each within its own bound:

1. With a plain loop written here, of torch.optim and autograd alone, which shares no line with the package: the same
   picture to 5e-6, a few units in the last place, on every machine and for every entry.
2. With the figures of 2020: the picture to 1e-3, `opt` to 1e-3 of itself.

Steps on signs and L-BFGS amplify rounding, and the figures were made with another build of torch, whose sums already
differ in the update (by 1e-7 of it). Where that happens the plain loop departs from the figures as far as the package
does; the second comparison is then skipped with the distances in its reason, and the first stands alone. With torch
2.15 on the machine of the authors these are the five in `DEPART`; other kernels move one or two in or out. No entry is
let off while the plain loop agrees with 2020, and at least 24 entries must agree.
"""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

import inversefed
from inversefed.errors import ConfigError

HERE = Path(__file__).parent
ENTRIES = {entry["name"]: entry for entry in json.loads((HERE / "reconstructions_2020.json").read_text())}
RAN = [name for name, entry in ENTRIES.items() if "opt" in entry]
DEPART = {"l2_lbfgs", "init_rand", "batch4", "median_filter", "fedavg_convnet"}
LONG = {"median_filter", "fedavg_convnet", "convnet_sim"}  # ten seconds and more: 500 steps, or a larger network
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in RAN]
OPT_IS_A_DEFECT = {"fedavg_steps4_batch2"}  # 2020 scored the restarts without batch_size


@functools.cache
def figures():
    with np.load(HERE / "reconstructions_2020.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def pick(name, mine, theirs):
    named = {"def": range(len(theirs)), "first": range(4), "first4": range(4), "last5": range(len(theirs))[-5:]}
    if name == "topk-1":
        return torch.stack([part.norm() for part in theirs]).topk(4).indices.tolist()
    return named[name]


def cost(config, mine, theirs):
    count = len(theirs)
    slope = torch.arange(count, 0, -1.0)
    scale = {"equal": torch.ones(count), "linear": slope / count, "exp": slope.softmax(0) / slope.softmax(0)[0]}
    pairs = [(mine[i], theirs[i], scale[config["weights"]][i]) for i in pick(config["indices"], mine, theirs)]
    kind = config["cost_fn"]
    if kind == "sim":
        dot = sum((a * b).sum() * w for a, b, w in pairs)
        na, nb = (sum(pair[side].pow(2).sum() * pair[2] for pair in pairs) for side in (0, 1))
        return 1 - dot / na.sqrt() / nb.sqrt()
    if kind == "simlocal":
        return sum(1 - F.cosine_similarity(a.flatten(), b.flatten(), 0, 1e-10) * w for a, b, w in pairs)
    one = {"l2": lambda d: d.pow(2).sum(), "l1": lambda d: d.abs().sum(), "max": lambda d: d.abs().max()}[kind]
    return sum(one(a - b) * w for a, b, w in pairs)


def roughness(x):
    return (x[..., :-1] - x[..., 1:]).abs().mean() + (x[..., :-1, :] - x[..., 1:, :]).abs().mean()


def median(x):
    patches = F.pad(x, [1] * 4, mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1)
    return patches.reshape(*x.shape, 9).median(dim=-1).values


def client(net, federated, x, y, keep_graph):
    """What the client sends: a gradient, or the outcome of local steps."""
    weights = dict(net.named_parameters())
    start = weights
    if federated is None:
        return torch.autograd.grad(F.cross_entropy(net(x), y), list(weights.values()), create_graph=keep_graph)
    size = federated["batch_size"] or len(x)
    for step in range(federated["local_steps"]):
        low = step % (len(x) // size) * size
        loss = F.cross_entropy(functional_call(net, weights, (x[low : low + size],)), y[low : low + size])
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {k: v - federated["local_lr"] * g for (k, v), g in zip(weights.items(), slopes, strict=True)}
    old = [p * federated["use_updates"] for p in start.values()]
    return [v - o for v, o in zip(weights.values(), old, strict=True)]


def restart(entry, net, sent, x, y, dm, ds):
    """One restart in the manner of 2020; returns the picture and its matching cost."""
    config, planned = entry["config"], entry["config"]["max_iterations"]
    leaves = [x.requires_grad_()] + ([torch.randn(10, requires_grad=True)] if y is None else [])

    def labels():
        return leaves[1].softmax(0).expand(len(x), 10) if y is None else y

    build = {"adam": torch.optim.Adam, "LBFGS": lambda leaves, lr: torch.optim.LBFGS(leaves)}
    build["sgd"] = lambda leaves, lr: torch.optim.SGD(leaves, lr=0.01, momentum=0.9, nesterov=True)
    steps = build[config["optim"]](leaves, lr=config["lr"])
    drops = [planned // 2.667, planned // 1.6, planned // 1.142] if config["lr_decay"] else []
    rate = torch.optim.lr_scheduler.MultiStepLR(steps, drops, gamma=0.1)

    def closure():
        steps.zero_grad()
        value = cost(config, client(net, entry["federated"], x, labels(), True), sent)
        if config["total_variation"] > 0:
            value = value + config["total_variation"] * roughness(x)
        for leaf, slope in zip(leaves, torch.autograd.grad(value, leaves), strict=True):
            leaf.grad = slope.sign() if config["signed"] and leaf is x else slope
        return value

    for done in range(1, planned + 1):
        steps.step(closure)
        rate.step()
        with torch.no_grad():
            if config["boxed"]:
                x.copy_(torch.max(torch.min(x, (1 - dm) / ds), -dm / ds))
            if config["filter"] == "median" and done % 500 == 0:
                x.copy_(median(x))
    found = x.detach()
    return found, float(cost(config, client(net, entry["federated"], found, labels(), False), sent).detach())


def plain(entry, net, sent, y, dm, ds):
    """All restarts in the manner of 2020, and the choice among them."""
    config, n = entry["config"], entry["num_images"]
    shape = (config["restarts"], n, 3, 32, 32)
    torch.manual_seed(7)
    starts = {
        "randn": lambda: torch.randn(shape),
        "rand": lambda: (torch.rand(shape) - 0.5) * 2,
        "zeros": lambda: torch.zeros(shape),
    }
    if entry["labels"] == "unknown":
        y = sent[-1].argmin().reshape(1) if n == 1 else None
    ends = [restart(entry, net, sent, start, y, dm, ds) for start in starts[config["init"]]()]
    stack = torch.stack([picture for picture, _ in ends])
    choice = config["scoring_choice"]
    if choice in ("pixelmean", "pixelmedian"):
        chosen = stack.mean(0) if choice == "pixelmean" else stack.median(0).values
        return chosen, float(cost(config, client(net, entry["federated"], chosen, y, False), sent).detach())
    scores = [float(roughness(picture)) if choice == "tv" else value for picture, value in ends]
    best = int(np.argmin(scores))
    return ends[best][0], scores[best]


@pytest.fixture(scope="module")
def attacked(batch, dm, ds):
    """(package, plain loop) of an entry: picture and opt of each; and the size of the update."""

    @functools.cache
    def both(name):
        entry, federated, n = ENTRIES[name], ENTRIES[name]["federated"], ENTRIES[name]["num_images"]
        net = inversefed.construct_model(entry["network"], seed=0)[0].eval()
        x, y = batch(n)
        sent = [part.detach() for part in client(net, federated, x, y, False)]
        torch.manual_seed(7)
        if federated is None:
            machine = inversefed.GradientReconstructor(net, (dm, ds), entry["config"], num_images=n)
        else:
            machine = inversefed.FedAvgReconstructor(net, (dm, ds), config=entry["config"], num_images=n, **federated)
        output, stats = machine.reconstruct(sent, None if entry["labels"] == "unknown" else y)
        size = sum(float(part.double().abs().sum()) for part in sent)
        return (output, stats["opt"]), plain(entry, net, sent, y, dm, ds), size

    return both


def distance(ours, theirs):
    return float((ours[0] - theirs[0]).abs().max())


def agrees(result, name):
    near = float((result[0] - figures()[name]).abs().max()) <= 1e-3
    expected = ENTRIES[name]["opt"]
    return near and (name in OPT_IS_A_DEFECT or abs(result[1] - expected) <= 1e-3 * abs(expected))


@pytest.mark.parametrize("name", EACH)
def test_the_same_as_a_plain_loop_on_any_machine(attacked, name):
    ours, loop, _ = attacked(name)
    assert distance(ours, loop) <= 5e-6
    assert math.isclose(ours[1], loop[1], rel_tol=1e-5)


@pytest.mark.parametrize("name", EACH)
def test_the_same_as_in_2020(attacked, name):
    ours, loop, size = attacked(name)
    assert math.isclose(size, ENTRIES[name]["update_abs_sum"], rel_tol=1e-5)
    if agrees(ours, name):
        return
    assert not agrees(loop, name), "the package departs from 2020 where a plain loop does not"
    pytest.skip(  # never silently: the reason stands in every test report
        f"rounding{'' if name in DEPART else ' (new on this machine)'}: the update differs by "
        f"{size / ENTRIES[name]['update_abs_sum'] - 1:.0e} of itself; a plain loop ends "
        f"{distance(loop, (figures()[name],)):.2g} from 2020, the package {distance(ours, loop):.0e} from that loop"
    )


@pytest.mark.parametrize("names", [sorted(set(RAN) - LONG), pytest.param(RAN, marks=pytest.mark.slow)])
def test_nearly_all_agree_with_2020(attacked, names):
    assert sum(not agrees(attacked(name)[0], name) for name in names) <= len(RAN) - 24


def test_an_attack_that_raised_in_2020_is_refused():
    (name,) = ENTRIES.keys() - set(RAN)
    entry = ENTRIES[name]
    net = inversefed.construct_model(entry["network"], seed=0)[0]
    machine = inversefed.GradientReconstructor(net, config=entry["config"])
    with pytest.raises(ConfigError, match="has 8 tensors, so its 10 largest"):
        machine.reconstruct([torch.zeros_like(weight) for weight in net.parameters()], torch.tensor([0]))
