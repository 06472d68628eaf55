"""Rehearsals: the power of a verdict, from public stand-ins, whatever the real update holds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import inversefed
from inversefed import Scenario, recipes
from inversefed.assessment import public_batches
from inversefed.attacks import Attack
from inversefed.cli import main
from inversefed.controls.rehearsal import rehearse
from inversefed.errors import ConfigError
from inversefed.evaluation.power import Power
from inversefed.fl.defenses import GaussianNoise
from inversefed.fl.simulate import observed
from inversefed.report.gate import leakage, outcome
from inversefed.types import Batch, Budget
from inversefed.zoo import pictures


@pytest.fixture(scope="module")
def small() -> Tensor:
    """All bundled photographs at 8x8."""
    return torch.stack([pictures.photo(name, (3, 8, 8)) for name in pictures.photo_names()])


def test_a_good_attack_has_power_and_a_crippled_or_blinded_one_has_none(small: Tensor) -> None:
    others, dense = Batch(small[1:], torch.arange(len(small) - 1)), nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    def power(attack: Attack, *defenses: GaussianNoise) -> Power | None:
        report = inversefed.audit(
            dense, small[:1], torch.tensor([1]), attack=attack, defenses=defenses, rehearsals=4, others=others
        )
        assert report.verdict is not None and "stand-ins" in report.verdict.sentence
        return report.verdict.figures.power

    good, crippled = power(recipes.linear()), power(recipes.geiping(max_iterations=1))
    blinded = power(
        recipes.geiping(max_iterations=8), GaussianNoise(std=1e3)
    )  # the world's defense is on its stand-ins too
    assert good is not None and (good.recovered, good.rehearsals) == (4, 4) and good.interval[0] > 0.39
    for each in (crippled, blinded):
        assert each is not None and each.recovered == 0 and each.interval[1] < 0.61


def test_a_rehearsal_is_the_same_whatever_the_real_update_holds(tiny: nn.Module, small: Tensor) -> None:
    other = Batch(small[2:6], torch.tensor([0, 1, 2, 3]))
    found = []
    for private in (small[:1], small[1:2]):
        observation, _ = observed(tiny, private, torch.tensor([1]))
        batches = public_batches(observation, other, 4)
        run = rehearse(
            recipes.geiping(max_iterations=3), batches, lambda batch, _: observed(tiny, batch.images, batch.labels)[0],
            planned=4, seed=5, budget=Budget(),
        )  # fmt: skip
        found.append(torch.cat([each.found.images for each in run.done if each.found is not None]))
    assert len(found[0]) == 4 and torch.equal(*found)


def test_what_is_missing_is_said(tiny: nn.Module, small: Tensor) -> None:
    others, labels = Batch(small[2:7], torch.arange(5)), torch.tensor([1, 2])
    attack = recipes.geiping(max_iterations=2)
    report = inversefed.audit(tiny, small[:2], labels, attack=attack, rehearsals=8, nulls=1, others=others)
    power = report.verdict and report.verdict.figures.power
    assert power and (power.rehearsals, power.planned) == (2, 8) and "public pictures for 2 only" in str(power)
    late = inversefed.audit(
        tiny, small[:2], labels, attack=attack, rehearsals=8, rehearsal_time=1e-9, nulls=1, others=others
    )
    assert late.verdict is not None and late.verdict.figures.power is None
    with pytest.raises(ConfigError, match="nulls=0"):
        inversefed.audit(tiny, small[:1], torch.tensor([1]), rehearsals=2, nulls=0)
    with pytest.raises(ConfigError, match="from 0"):
        inversefed.audit(tiny, small[:1], torch.tensor([1]), rehearsals=-1)


def test_scenario_and_command_know_rehearsals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = "--network LeNetZhu --attack geiping --max-iterations 2 --nulls 1 --quiet"
    named = f"gate --rehearse 2 --min-power 0.9 --max-leakage 50 {common} --output {tmp_path / 'run'}"
    assert main(named.split()) == 2 and "recovered 0% of public stand-ins" in capsys.readouterr().err
    assert main(f"gate --min-power 0.9 {common}".split()) == 2 and "--rehearse" in capsys.readouterr().err
    content = json.loads((tmp_path / "run" / "report.json").read_text())
    power = content["verdict"]["figures"]["power"]
    assert (power["recovered"], power["rehearsals"], power["share"]) == (0, 2, 0.0)
    found, none = leakage(content), replace(leakage(content), power=None)
    assert [outcome(each, 50.0, least) for each in (found, none) for least in (None, 0.0, 0.5)] == [
        "below", "below", "unknown", "below", "unknown", "unknown"
    ]  # fmt: skip
    scenario = Scenario.from_report(tmp_path / "run")
    assert scenario.rehearsals == 2 and scenario.hash() != replace(scenario, rehearsals=None).hash()
    assert "rehearsals" not in replace(scenario, rehearsals=None).to_dict()  # as records had it before
