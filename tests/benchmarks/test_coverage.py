"""The table of everything: its rows and settings, how it goes on where it stopped, and a process that is killed."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import coverage
from benchmarks.coverage import Options, Row, Setting
from benchmarks.small_networks import SHAPE, SMALL_NETWORKS
from inversefed.zoo import networks

LINEAR = Setting("small linear", "eval", 1, "FedSGD", 3.0)
NO_SUCH_LAYERS = replace(LINEAR, network="zoo SRNet3")


def test_every_network_is_in_the_table_in_eight_settings() -> None:
    every = list(coverage.settings(Options()))
    assert len(set(every)) == len(every) == 8 * (len(networks.names()) + len(SMALL_NETWORKS))
    assert len({setting.name for setting in every}) == len(every)
    assert len(list(coverage.settings(Options(small=True, only="vit.* train 4 FedAvg$")))) == 2


@pytest.mark.parametrize("name", sorted(SMALL_NETWORKS))
@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_small_network_is_drawn_from_its_seed_and_goes_with_its_loss(name: str) -> None:
    small, state = SMALL_NETWORKS[name], torch.get_rng_state()
    first, again, other = (small.build(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    if name == "instancenorm-at-1x1":  # torch itself refuses it, and so must the house, in words
        return
    loss = small.loss or torch.nn.functional.cross_entropy
    outputs = small.build()(torch.rand(4, *SHAPE).to(small.dtype))
    assert bool(torch.isfinite(loss(outputs, torch.arange(4) % small.classes)))


def test_a_row_says_what_came_out_or_why_nothing_did() -> None:
    row = coverage.measured(LINEAR, recipe=True, commit="abc")
    assert row.outcome == "exact" and row.psnr is not None and row.psnr > coverage.EXACT
    assert row.recipe is None and not row.worse and row.commit == "abc"
    refused = coverage.measured(NO_SUCH_LAYERS, recipe=True, commit="")
    assert refused.outcome == "refused" and refused.error == "UnsupportedNetworkError" and not refused.worse
    assert refused.recipe_error is not None and "never defined" in str(refused.message)
    assert coverage.shown(refused).count("|") == coverage.shown(row).count("|") == 11


def test_a_crash_is_told_with_its_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("3.weight")

    monkeypatch.setattr(coverage, "audited", broken)
    row = coverage.measured(LINEAR, recipe=True, commit="")
    assert row.outcome == "crash" and row.error == "KeyError" and "broken" in row.trace[-1]
    assert row.recipe_error == "KeyError: '3.weight'"
    assert "1 crashes" in coverage.summary([row])


def test_what_the_recipe_does_better_counts_apart() -> None:
    def row(psnr: float | None, recipe: float | None) -> Row:
        return Row(LINEAR, "refused" if psnr is None else "above", psnr=psnr, recipe=recipe)

    found = [row(20.0, 20.4), row(20.0, 20.6), row(None, 9.0), row(None, None)]
    assert [each.worse for each in found] == [False, True, True, False]
    assert "1 more than 0.5 dB below the recipe, 2 refused" in coverage.summary(found)
    assert coverage.summary(found).endswith("1 without a result where the recipe has one")


def table(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def test_the_command_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "table.json"
    options = ["--only", "^(small linear|zoo SRNet3) eval 1 FedSGD", "--no-recipe", "--json", str(out)]
    assert coverage.main([*options, "--budget", "3", "--limit", "1"]) == 0
    assert [row["outcome"] for row in table(out)["rows"]] == ["exact"]
    assert coverage.main([*options, "--budget", "3"]) == 0
    assert "| small linear |" in capsys.readouterr().out.split("1 rows")[0]
    rows = table(out)["rows"]
    assert [(row["setting"]["network"], row["outcome"]) for row in rows] == [
        ("small linear", "exact"), ("zoo SRNet3", "refused"),
    ]  # fmt: skip
    assert coverage.main([*options, "--budget", "3"]) == 0
    printed = capsys.readouterr().out
    assert "| small linear |" not in printed and "2 rows: 1 exact, 1 above" in printed
    assert table(out)["rows"] == rows and "torch" in table(out)["machine"]
    assert coverage.main([*options, "--budget", "3", "--redo", "refused"]) == 0
    assert "| zoo SRNet3 |" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--only", "("], ["--redo", "crashes"], ["--jobs", "0"], ["--budget", "0"]])
def test_wrong_usage_ends_with_a_reason(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert coverage.main(wrong) == 2
    assert "error: " in capsys.readouterr().err


def test_a_file_of_another_benchmark_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.json"
    for text in ("{", "[]", '{"rows": [{"case": 1}]}'):
        out.write_text(text)
        assert coverage.main(["--json", str(out)]) == 2
        assert "is no table of this benchmark" in capsys.readouterr().err and out.read_text() == text


def test_a_row_survives_its_file() -> None:
    row = Row(LINEAR, "crash", error="KeyError", trace=("a", "b"))
    assert coverage._read(json.loads(json.dumps(asdict(row)))) == row
