"""Beside NVIDIA FLARE itself, where it is installed: `make test-nvflare` does that and runs these."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from inversefed import Batch, defenses, freeze
from inversefed.fl.defenses import Context

nvflare = pytest.importorskip("nvflare", reason="NVFlare is not installed; `make test-nvflare` sees to it")

from nvflare.apis.dxo import DXO, DataKind, MetaKey  # noqa: E402
from nvflare.apis.fl_context import FLContext  # noqa: E402
from nvflare.apis.shareable import Shareable  # noqa: E402
from nvflare.app_common.filters import ExcludeVars, PercentilePrivacy, SVTPrivacy  # noqa: E402


@pytest.fixture
def context(tiny: torch.nn.Module) -> Context:
    return Context(freeze(tiny, (3, 8, 8)), Batch(torch.rand(1, 3, 8, 8), torch.tensor([0])))


def gradient(seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn((8, 3, 3, 3), generator=generator),
        "conv.bias": 0.1 * torch.randn(8, generator=generator),
        "scale": torch.tensor(0.3),
    }


def filtered(filter_: Any, update: dict[str, torch.Tensor], steps: int = 1) -> dict[str, np.ndarray]:
    """What FLARE's own filter makes of an update."""
    data = {name: part.numpy().copy() for name, part in update.items()}
    sent = DXO(DataKind.WEIGHT_DIFF, data=data, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: steps}).to_shareable()
    assert isinstance(sent, Shareable)
    return filter_.process(sent, FLContext())["DXO"]["data"]


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize(("q", "gamma"), [(10.0, 0.01), (50.0, 0.5), (90.0, 2.0), (100.0, 10.0), (0.0, 1e3)])
def test_percentile_privacy_is_flare_s(context: Context, q: float, gamma: float, steps: int) -> None:
    theirs = filtered(PercentilePrivacy(q, gamma), gradient(), steps)
    ours = defenses.PercentilePrivacy(q, gamma, steps)(gradient(), context, torch.Generator())
    assert list(ours) == list(theirs)
    for name, part in ours.items():
        assert float(np.abs(part.numpy() - theirs[name]).max()) <= 1e-6, name


@pytest.mark.parametrize("given", ["bias$", "conv", "no such", ["conv.weight", "scale"]])
def test_exclude_vars_leaves_out_what_flare_s_does(context: Context, given: Any) -> None:
    theirs = filtered(ExcludeVars(given), gradient())
    defense = defenses.ExcludeVars(given if isinstance(given, str) else tuple(given))
    assert set(gradient()) - set(theirs) == set(defense.left_out(tuple(gradient())))


@pytest.mark.parametrize("replace", [True, False])
def test_svt_privacy_is_flare_s_by_its_distribution(context: Context, replace: bool) -> None:
    settings = {"fraction": 0.2, "epsilon": 400.0, "noise_var": 8.0, "gamma": 1.0, "tau": 0.3, "replace": replace}
    update, generator = gradient(), torch.Generator().manual_seed(5)
    state = np.random.get_state()  # noqa: NPY002  FLARE draws from it
    np.random.seed(11)  # noqa: NPY002
    try:
        theirs = [filtered(SVTPrivacy(**settings), update, 3) for _ in range(300)]
    finally:
        np.random.set_state(state)  # noqa: NPY002
    defense = defenses.SVTPrivacy(**settings, steps=3)
    ours = [{name: part.numpy() for name, part in defense(update, context, generator).items()} for _ in range(300)]
    for each in (*theirs, *ours):
        assert each["scale"] == np.float32(0.3)
    flat = [np.stack([np.concatenate([each["conv.weight"].ravel(), each["conv.bias"]]) for each in both])
            for both in (theirs, ours)]  # fmt: skip
    chosen = [each != 0 for each in flat]
    error = np.sqrt(sum(each.mean(0) * (1 - each.mean(0)) / 300 for each in chosen)) + 1e-3
    assert float((np.abs(chosen[0].mean(0) - chosen[1].mean(0)) / error).max()) < 5  # each entry's chance to be sent
    assert float(chosen[0].mean(0).std()) > 0.02  # which differ: the choice sees sizes
    assert ks_2samp(chosen[0].sum(1), chosen[1].sum(1)).pvalue > 0.01  # how many are sent
    cut = np.concatenate([gradient()[name].numpy().ravel() / 3 for name in ("conv.weight", "conv.bias")]).clip(-1, 1)
    noise = [(each - 3 * cut)[sent] for each, sent in zip(flat, chosen, strict=True)]
    assert ks_2samp(*noise).pvalue > 0.01
    assert float(np.abs(noise[1]).mean()) == pytest.approx(defense.noise_scale, rel=0.03)
