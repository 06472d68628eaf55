"""Judging records: p-values that hold, an interval that holds, and rates that can be measured."""

import numpy as np
import pytest
import torch
from scipy import stats

from inversefed.errors import InputError
from inversefed.evaluation.membership import judge_members


def scores(generator: torch.Generator, inside: int, outside: int, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.randn(inside, generator=generator, dtype=torch.float64) + shift,
        torch.randn(outside, generator=generator, dtype=torch.float64),
    )


def test_p_values_are_ranks_among_the_records_that_are_out() -> None:
    found = judge_members(torch.tensor([5.0, 1.5, -1.0, 2.0]), torch.arange(4.0))
    assert found.p_values.tolist() == [0.2, 0.6, 1.0, 0.6]
    assert not found.called.any()  # four records that are out allow no call at 5 %


def test_records_that_are_out_are_called_as_often_as_said(generator: torch.Generator) -> None:
    found = [judge_members(*scores(generator, 20, 39, 0.0)) for _ in range(60)]
    called = torch.stack([each.called.double().mean() for each in found])
    assert 0.03 <= float(called.mean()) <= 0.07  # 1,200 records, twice as many ranks as the level needs
    together = sum(each.found for each in found)
    assert stats.binomtest(together, 60, 0.05, alternative="greater").pvalue > 0.01


def test_all_records_together_have_the_p_value_of_all_choices() -> None:
    asked, out = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0, 5.0])
    weights = {rank: sum(1 / k for k in range(6 - rank, 6)) for rank in range(1, 6)}  # by value, from the lowest
    sums = [weights[i] + weights[j] for i in range(1, 6) for j in range(i + 1, 6)]
    expected = sum(each >= weights[3] + weights[4] - 1e-9 for each in sums) / len(sums)
    assert judge_members(asked, out).p_value == pytest.approx(expected, abs=0.02)


def test_a_few_that_are_in_are_seen_among_many_that_are_not(generator: torch.Generator) -> None:
    asked, out = scores(generator, 32, 64, 0.0)
    asked[:8] += 8
    assert judge_members(asked, out).p_value < 0.01


def test_the_area_is_that_of_an_independent_count_and_its_interval_holds_it() -> None:
    inside, outside = torch.tensor([0.1, 0.7, 0.7, 2.0]), torch.tensor([0.7, 0.0, -1.0])
    both = np.concatenate([inside.numpy(), outside.numpy()])
    ranks = stats.rankdata(both)[: len(inside)].sum()
    expected = (ranks - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside))
    found = judge_members(inside, outside).auc
    assert found is not None and found.low is not None and found.high is not None
    assert found.mean == pytest.approx(expected)
    assert found.low < found.mean < found.high


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_the_interval_holds_the_true_area(shift: float, generator: torch.Generator) -> None:
    true, held = float(stats.norm.cdf(shift / 2**0.5)), 0
    for _ in range(100):
        auc = judge_members(*scores(generator, 30, 40, shift)).auc
        assert auc is not None and auc.low is not None and auc.high is not None
        held += auc.low <= true <= auc.high
    assert held >= 88  # of 100 at 95 %


def test_no_pair_out_of_order_still_leaves_an_interval() -> None:
    perfect = judge_members(torch.arange(64.0) + 100, torch.arange(64.0)).auc
    hopeless = judge_members(torch.arange(64.0) - 100, torch.arange(64.0)).auc
    assert perfect is not None and hopeless is not None and perfect.low is not None and hopeless.high is not None
    assert perfect.mean == perfect.high == 1 and 0.9 < perfect.low < 0.99
    assert hopeless.mean == hopeless.low == 0 and hopeless.high == pytest.approx(1 - perfect.low)


def test_rates_below_one_record_are_said_to_be_unresolved() -> None:
    few = judge_members(torch.arange(64.0) + 32.5, torch.arange(64.0)).called_at
    many = judge_members(torch.arange(1000.0) + 500.5, torch.arange(1000.0)).called_at
    assert [(each.rate, each.resolved, each.false_alarms) for each in few] == [(0.01, False, 0), (0.001, False, 0)]
    assert [(each.rate, each.resolved, each.false_alarms) for each in many] == [(0.01, True, 10), (0.001, True, 1)]
    assert few[0].share == 33 / 64  # above 63
    assert [each.share for each in many] == [0.511, 0.502]  # above 989 and above 998


def test_what_is_known_of_the_candidates_is_used_for_the_figures_alone() -> None:
    asked, out = torch.tensor([5.0, 6.0, 1.0, 2.0]), torch.arange(4.0)
    blind, told = judge_members(asked, out), judge_members(asked, out, torch.tensor([True, True, False, False]))
    assert blind.auc is not None and told.auc is not None
    assert blind.auc.mean < 1 == told.auc.mean
    assert torch.equal(blind.p_values, told.p_values) and blind.p_value == told.p_value


def test_scores_that_are_all_equal_say_nothing() -> None:
    found = judge_members(torch.zeros(5), torch.zeros(30))
    assert found.p_values.tolist() == [1.0] * 5 and not found.found
    assert found.called_at[0].share == 0


@pytest.mark.parametrize("out", [torch.zeros(0), torch.tensor([float("nan")])])
def test_without_records_that_are_out_there_is_no_judgement(out: torch.Tensor) -> None:
    with pytest.raises(InputError, match="known to be out"):
        judge_members(torch.ones(2), out)
