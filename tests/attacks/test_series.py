"""Series through an audit: peeled, searched, and through networks that no exact method reads."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import inversefed
from inversefed import recipes
from inversefed.errors import InversefedError
from inversefed.inputs import Series
from inversefed.report import gallery

SPACE = Series(1, 64, low=-10.0, high=40.0)


def windows(count: int, channels: int = 1, length: int = 64, seed: int = 0) -> torch.Tensor:
    """Days of hourly temperatures, made up: a daily wave, a random walk and a level."""
    random = torch.Generator().manual_seed(seed)
    phase, level = (torch.rand(count, channels, 1, generator=random) for _ in range(2))
    wave = 8 * torch.sin(2 * torch.pi * (torch.arange(length) / 24 + phase))
    walk = torch.randn(count, channels, length, generator=random).cumsum(dim=-1)
    return SPACE.encode((8 + 14 * level + wave + 0.3 * walk).clamp(-10, 40))


class LeNet(nn.Module):
    """Three convolutions and a head, written with a squeeze and a function as users do."""

    def __init__(self, activation: type[nn.Module], channels: int = 1, outputs: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = ((channels, 12, 2), (12, 12, 2), (12, 12, 1))
        convs = [nn.Conv1d(inner, outer, 5, stride, padding=2) for inner, outer, stride in sizes]
        self.body = nn.Sequential(*(part for conv in convs for part in (conv, activation())))
        self.head = nn.Linear(192, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = kind(1, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x.transpose(1, 2))[0][:, -1])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_a_window_is_peeled_through_convolutions_of_series(activation: type[nn.Module], channels: int) -> None:
    space = Series(channels, 64, -10.0, 40.0)
    report = inversefed.audit(
        LeNet(activation, channels).eval(), windows(1, channels), torch.tensor([2]), inputs=space, mean=0.5, std=0.25,
        nulls=0,
    )  # fmt: skip
    assert report.reconstruction.proven and report.reconstruction.made_by.startswith("Peel(")
    assert float(report.scores["peak_signal_noise_ratio"]) > 100
    assert float(report.scores["root_mean_square_error"]) < 1e-3
    assert report.images.shape == (1, channels, 64) and set(report.baselines) >= {"level", "middle"}


def test_a_regression_on_series_gives_window_and_target() -> None:
    report = inversefed.audit(
        LeNet(nn.Sigmoid, outputs=1).eval(), windows(1), torch.tensor([[21.5]]), inputs=SPACE, mean=0.5, std=0.25,
        loss=nn.MSELoss(), nulls=0,
    )  # fmt: skip
    assert report.reconstruction.proven and abs(float(report.labels) - 21.5) < 1e-4


def test_a_smooth_network_is_searched_above_40_decibels() -> None:
    report = inversefed.audit(
        LeNet(nn.Sigmoid).eval(), windows(1), torch.tensor([2]), inputs=SPACE, mean=0.5, std=0.25,
        attack=recipes.curvature(), nulls=0,
    )  # fmt: skip
    assert float(report.scores["peak_signal_noise_ratio"]) > 40


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_network_is_searched_and_answers(kind: type[nn.LSTM] | type[nn.GRU]) -> None:
    report = inversefed.audit(
        Recurrent(kind).eval(), windows(1, length=6), torch.tensor([2]), inputs=Series(1, 6, -10.0, 40.0), mean=0.5,
        std=0.25, nulls=1, max_iterations=5,
    )  # fmt: skip
    assert report.images.shape == (1, 1, 6) and bool(report.images.isfinite().all())
    assert report.verdict is not None and "symmetric_mean_absolute_percentage_error" in report.scores


def test_values_in_other_units_are_refused_by_what_to_do() -> None:
    with pytest.raises(InversefedError, match=r"encode\(values\)"):
        inversefed.audit(LeNet(nn.ReLU).eval(), SPACE.decode(windows(1)), torch.tensor([2]), inputs=SPACE)


def test_the_report_draws_recovered_and_private_curves_in_units_of_the_series() -> None:
    torch.manual_seed(0)
    network, window = nn.Sequential(nn.Flatten(), nn.Linear(128, 5)), windows(1, channels=2)
    space = Series(2, 64, low=-10.0, high=40.0)
    report = inversefed.audit(network, window, torch.tensor([2]), inputs=space, nulls=0)
    drawn = gallery.curves(report)
    assert [title for title, _ in drawn] == ["Window 0, channel 0", "Window 0, channel 1"]
    values = SPACE.decode(window[0, 0])
    assert f"64 values from {float(values.min()):.4g} to {float(values.max()):.4g}" in drawn[0][1]
    assert all(drawing in report.to_html() for _, drawing in drawn) and "<svg" not in drawn[0][0]
    alone = replace(report, truth=None)
    assert "private" not in gallery.curves(alone)[0][1] and gallery.curves(replace(report, inputs=None)) == []
