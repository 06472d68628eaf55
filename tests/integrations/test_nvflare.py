"""Beside NVIDIA FLARE itself, where it is installed: `make test-nvflare` does that and runs these."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from inversefed import Batch, defenses, freeze
from inversefed.fl.defenses import Context

nvflare = pytest.importorskip("nvflare", reason="NVFlare is not installed; `make test-nvflare` sees to it")

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable  # noqa: E402
from nvflare.apis.fl_context import FLContext, FLContextManager  # noqa: E402
from nvflare.apis.shareable import Shareable  # noqa: E402
from nvflare.app_common.filters import ExcludeVars, PercentilePrivacy, SVTPrivacy  # noqa: E402

from inversefed.integrations.nvflare import AuditFilter, SentFilter  # noqa: E402

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "nvflare_audit")


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


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> FLContext:
    """The context of a client of the example, whose modules can be imported."""
    monkeypatch.syspath_prepend(EXAMPLE)
    return FLContextManager(identity_name="site-1", job_id="job").new_context()


def trained(lr: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights before and after a step of the example's client."""
    from nvflare_site import MEAN, STD, Net, private

    module, batch = Net(), private("site-1")
    before = {name: part.detach().numpy().copy() for name, part in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    torch.nn.functional.cross_entropy(module((batch.images - MEAN) / STD), batch.labels).backward()
    optimizer.step()
    return before, {name: part.detach().numpy().copy() for name, part in module.state_dict().items()}


def passed(site: FLContext, kind: str, sent: bool = True, **meta: Any) -> tuple[DXO, dict[str, dict[str, np.ndarray]]]:
    """What leaves a client whose audit is one of two iterations and of no null run."""
    before, after = trained(0.1)
    if sent:
        SentFilter().process(DXO(DataKind.WEIGHTS, data=before).to_shareable(), site)
    change = {name: after[name] - before[name] for name in before}
    data = after if kind == DataKind.WEIGHTS else change
    policy = {name: meta.pop(name) for name in ("max_leakage", "above", "unknown", "noise_std") if name in meta}
    audit = AuditFilter(
        "nvflare_site:Net", [3, 32, 32], 0.5, 0.25, training={"lr": 0.1, "local-steps": 1}, num_examples=2,
        truth="nvflare_site:private_of", seconds=60.0, nulls=0, attack="geiping(max_iterations=2)", **policy,
    )  # fmt: skip
    result = DXO(kind, data={name: part.copy() for name, part in data.items()}, meta=meta).to_shareable()
    result.set_header("current_round", 0)
    return from_shareable(audit.process(result, site)), {"before": before, "after": after, "change": change}


def test_below_its_limit_a_result_leaves_as_it_is(site: FLContext) -> None:
    left, truth = passed(site, DataKind.WEIGHTS, max_leakage=100.0, unknown="withhold")
    assert all(np.array_equal(left.data[name], part) for name, part in truth["after"].items())
    assert left.get_meta_prop("inversefed_withheld") is None


@pytest.mark.parametrize("kind", [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF])
def test_above_its_limit_a_result_is_withheld_and_the_job_goes_on(site: FLContext, kind: str) -> None:
    left, truth = passed(site, kind, max_leakage=-100.0)
    expected = (
        truth["before"] if kind == DataKind.WEIGHTS else {name: 0 * part for name, part in truth["change"].items()}
    )
    assert all(np.array_equal(left.data[name], part) for name, part in expected.items())
    assert left.get_meta_prop("inversefed_withheld") is True and left.get_filter_history() == ["AuditFilter"]


def test_above_its_limit_a_result_is_noised_where_the_policy_says_so(site: FLContext) -> None:
    left, truth = passed(site, DataKind.WEIGHT_DIFF, max_leakage=-100.0, above="noise", noise_std=0.5)
    noise = np.concatenate([(left.data[name] - part).ravel() for name, part in truth["change"].items()])
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)


def test_what_cannot_be_audited_is_unknown_to_the_policy(site: FLContext) -> None:
    left, truth = passed(site, DataKind.WEIGHT_DIFF, sent=False, unknown="withhold")
    assert not any(part.any() for part in left.data.values())
    left, truth = passed(site, DataKind.WEIGHT_DIFF, max_leakage=-100.0, **{MetaKey.PROCESSED_ALGORITHM: "_HE_CKKS_"})
    assert all(np.array_equal(left.data[name], part) for name, part in truth["change"].items())  # unknown passes


@pytest.mark.slow
def test_a_federation_in_the_simulator_is_audited_on_both_sides(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, str(Path(EXAMPLE) / "job.py"), "--rounds", "1", "--seconds", "3", "--no-open"]
    done = subprocess.run(
        [*command, "--output", str(output)], capture_output=True, text=True, timeout=280, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Aggregated 2/2 results" in done.stdout + done.stderr
    pages = sorted(page.relative_to(output / "clients") for page in (output / "clients").glob("*/*/report.html"))
    assert list(map(str, pages)) == [f"site-{number}/round-0001/report.html" for number in (1, 2)]
    report = json.loads((output / "clients/site-1/round-0001/report.json").read_text())
    assert report["scenario"]["client"].startswith("FedAvg(local_steps=1, lr=0.1")
    captures = sorted((output / "updates/nvflare").glob("round-0001/site-*/update.safetensors"))
    assert len(captures) == 2
    assert "round 1, client site-1" in done.stdout and "round 1, client site-2" in done.stdout
