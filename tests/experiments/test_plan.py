"""Plans: what they expand to, and what is wrong with them, by line and column."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inversefed.cli import main
from inversefed.errors import ConfigError, InputError
from inversefed.experiments import estimate as estimating
from inversefed.experiments.ledger import Ledger, new_owner
from inversefed.experiments.plan import ModelSpec, Plan, Targets, Training
from inversefed.experiments.plan_file import parse_plan, read_plan, shipped
from inversefed.experiments.planning import add_run, jobs_of, write_jobs
from inversefed.experiments.table import row_of
from inversefed.experiments.work import work
from inversefed.frontier import Point
from inversefed.report.png import png
from inversefed.scenario import Scenario

SMALL = """
name: small
targets: {limit: 2}
networks: [LeNetZhu]
clients: [{FedSGD: {}}, {FedAvg: {local_steps: 2, lr: 1e-3}}]
defenses: [none, {GaussianNoise: 0.1}, [{Clip: {max_norm: 1.0}}, GaussianNoise(0.01)]]
attacks: [{geiping: {max_iterations: 3}}, linear]
seeds: [0, 1]
nulls: 0
"""


def test_a_plan_is_the_product_of_its_lists() -> None:
    plan = parse_plan(SMALL)
    cells = list(plan.cells())
    assert len(cells) == len(plan) == 2 * 2 * 3 * 2 * 2
    assert len({(repr(c.scenario), c.target) for c in cells}) == len(cells)
    assert plan.clients[1].lr == 1e-3 and isinstance(plan.clients[1].lr, float)
    assert [len(each) for each in plan.defenses] == [0, 1, 2]
    assert cells[0].scenario.attack.max_iterations == 3


def test_jobs_have_the_hashes_of_the_same_audits_by_themselves() -> None:
    plan = parse_plan("name: x\nclients: [FedSGD, FedAvg(2)]\nattacks: [{geiping: {max_iterations: 3}}]\nseeds: [0, 1]")
    jobs = list(jobs_of(plan))
    assert len({job.hash for job in jobs}) == 4
    for job, cell in zip(jobs, plan.cells(), strict=True):
        assert cell.scenario.loaded().hash() == job.hash
        again = Scenario.from_dict(json.loads(job.scenario)).loaded()  # raises where a tensor differs
        assert again.hash() == job.hash
    assert jobs[0].bytes > 0 and jobs[0].client == "FedSGD" and jobs[1].client == "FedAvg(local_steps=2)"


def test_a_plan_is_read_back_from_what_a_ledger_holds(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(torch.rand(3, 32, 32)))
    text = SMALL.replace("{limit: 2}", "[{limit: 2}, {images: ., num_images: 2, labels: [1, 2, 3]}]").replace(
        "[LeNetZhu]", "[LeNetZhu, {ConvNet: {train: {epochs: [0, 1], dataset: CIFAR10}, train_mode: true}}]"
    )
    (tmp_path / "plan.yaml").write_text(text + "threat: {labels: known}\ntime_budget: 1.5m\n")
    plan = read_plan(tmp_path / "plan.yaml")
    assert parse_plan(json.dumps(plan.to_dict()), folder=Path("/elsewhere")).to_dict() == plan.to_dict()
    assert plan.time_budget == 90 and plan.threat.labels == "known" and len(plan.models) == 3
    assert [len(each.images) for each in plan.targets[1].sources()] == [2]


FRONTIER = """
name: frontier
targets: {limit: 2}
networks: [LeNetZhu]
points: [none, Clip(1.0) + GaussianNoise(0.1), [{num_images: 2}, {TopK: {keep: 0.1}}]]
attacks: [{geiping: {max_iterations: 2}}]
utility: {data: [CIFAR10, photos], rounds: 2}
"""


def test_a_plan_of_points_is_a_frontier_with_leakage_and_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = parse_plan(FRONTIER.replace("limit: 2", "limit: 1").replace("rounds: 2", "rounds: 1"), data_path=tmp_path)
    assert len(plan) == 3 and plan.points[2].num_images == 2 and parse_plan(json.dumps(plan.to_dict())) == plan
    ledger = Ledger("runs/ledger.db")
    run = add_run(ledger, plan)
    write_jobs(ledger, run)
    assert all(job.bytes > 0 for job in ledger.jobs(run))
    assert work(ledger.url, ledger.folder, run, new_owner()) == 3
    rows = [row_of(job, content) for job, content in ledger.rows(run)]
    ledger.close()
    assert [(row["client"], row["defenses"], row["num_images"], row["targets"]) for row in rows] == [
        ("FedSGD", "none", 1, 1),
        ("FedSGD", "Clip(max_norm=1.0) + GaussianNoise(std=0.1)", 1, 1),
        ("FedSGD", "TopK(keep=0.1)", 2, 1),
    ]
    for row in rows:
        assert row["leakage"] == row["margin"] == max(row["plain"], row["adaptive"]) - row["control"]
        assert 0 <= row["accuracy"] <= 1 and row["note"] == "" and row["verdict"] == "not judged"
    for options in ([], ["--summary"]):
        assert main(["results", "frontier", *options]) == 0
        first, _, *lines = capsys.readouterr().out.splitlines()
        cells = [dict(zip(first.split("|"), line.split("|"), strict=True)) for line in lines]
        assert [float(each[" accuracy "]) for each in cells] == pytest.approx([row["accuracy"] for row in rows])
        leakage = " margin " if options else " leakage "
        assert [float(each[leakage]) for each in cells] == pytest.approx([row["leakage"] for row in rows], rel=1e-3)


def test_a_frontier_is_predicted_by_the_attacks_of_its_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "_seconds", lambda scenario: 3.0 * len(scenario.held.truth.images))
    plan = replace(parse_plan(FRONTIER), points=parse_plan(FRONTIER).points[1:])
    assert [(kind.name.split(", ")[1], kind.count, kind.seconds) for kind in estimating.estimate(plan)] == [
        ("1 picture", 1, 12.0),  # two updates, attacked by two
        ("2 pictures", 1, 24.0),
    ]


def test_a_point_of_python_values_is_called_as_it_is_written() -> None:
    for name in ("mine", "num_images=3"):
        plan = replace(parse_plan(FRONTIER), points=(Point(name, num_images=2),))
        with pytest.raises(ConfigError, match="called as it is written"):
            plan.to_dict()


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("name: a\nnetwork: [LeNetZhu]", (2, 1), "did you mean networks"),
        ("name: a\nnetworks: [LeNetZu]", (2, 12), "did you mean LeNetZhu"),
        ("name: a\nattacks:\n  - geiping\n  - geipin", (4, 5), "did you mean geiping"),
        ("name: a\nclients: [{FedAvg: {steps: 2}}]", (2, 11), "steps"),
        ("name: a\nseeds: [0, x]", (2, 12), "a whole number was expected, got 'x'"),
        ("name: a\nseeds: []", (2, 8), "at least one"),
        ("name: a\nthreat: {labels: seen}", (2, 18), "unknown or known"),
        ("name: a\ntargets: {dataset: CIFAR}", (2, 20), "CIFAR10"),
        ("name: a\ntargets: {images: gone}", (2, 19), "no picture"),
        ("name: a\ntargets: {limit: 0}", (2, 10), "at least 1"),
        ("name: a\nnetworks: [{ConvNet: {weights: gone.pt}}]", (2, 32), "no file"),
        ("name: a\nname: b", (2, 1), "twice"),
        ("name: a\nattacks: ['os:system(1)']", (2, 11), "names code"),
        ("name: a\nattacks: ['my.mod:Attack']", (2, 11), "names code"),
        ("name: a\nnulls: !!python/object/apply:os.system [x]", (2, 8), "expected"),
        ("name: a\nnulls: !x 3", (2, 8), "tag"),
        ("name: a\n  b: [", (2, 4), "not YAML"),
        ("name: ../a", (1, 7), "a name has letters"),
        ("seeds: [1]", (1, 1), "needs a name"),
        ("- a", (1, 1), "keys with values"),
        ("name: a\npoints: [none, TopKK(1)]", (2, 16), "did you mean TopK"),
        ("name: a\npoints: [none]\ndefenses: [none]", (3, 11), "leave out defenses"),
        ("name: a\npoints: [none]\nattacks: [linear]", (1, 1), "a search is adapted"),
        ("name: a\npoints: [none]\nnulls: 3", (1, 1), "null"),
        ("name: a\npoints: [none]\ntargets: {num_images: 2}", (1, 1), "how many pictures"),
        ("name: a\nutility: {data: [photos]}", (1, 1), "plan of points"),
        ("name: a\npoints: [none]\nutility: {rounds: 3}", (3, 10), "needs its data"),
        ("name: a\npoints: [none]\nutility: {data: [CIFAR]}", (3, 18), "CIFAR10"),
        ("name: a\npoints: [none]\nutility: {data: [photos], rounds: 0}", (3, 10), "one round"),
        ("name: a\ntime_budget: soon", (2, 14), "such as 30s"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, place: tuple[int, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_plan(text, "plan.yaml")
    assert str(caught.value).startswith(f"plan.yaml, line {place[0]}, column {place[1]}: ")


def test_text_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    for text in ("", "a" * 10, "[" * 5000, "a: &b [*b]", "\x00"):
        with pytest.raises(ConfigError):
            parse_plan(text)
    with pytest.raises(InputError):
        read_plan(tmp_path / "nowhere.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(InputError, match="bytes"):
        read_plan(tmp_path / "large.yaml")


def test_numbers_are_those_of_yaml_1_2() -> None:
    plan = parse_plan("name: no\nnote: on\nclients: [{FedAvg: {lr: 1e-2}}]\nseeds: [010]")
    assert (plan.name, plan.note, plan.clients[0].lr, plan.seeds) == ("no", "on", 0.01, (10,))


def test_pieces_that_no_text_builds_are_refused() -> None:
    plan = Plan("x", loss=lambda logits, labels: logits.square().mean())
    with pytest.raises(ConfigError, match="no text builds it"):
        plan.to_dict()


def test_networks_and_targets_refuse_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="not both"):
        ModelSpec("ConvNet", weights="a.pt", train=Training())
    with pytest.raises(ConfigError, match="epochs"):
        Training(epochs=-1)
    with pytest.raises(InputError, match="asked for"):
        list(Targets(images=(Path(__file__).parent,)).sources())


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_plan_that_ships_is_read(name: str) -> None:
    plan = read_plan(shipped()[name])
    assert plan.name == name and plan.note and len(plan) > 1
    assert parse_plan(json.dumps(plan.to_dict())).to_dict() == plan.to_dict()


@pytest.mark.slow  # some thirty audits of two iterations or two seconds each
@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_plan_that_ships_runs_in_miniature(name: str, tmp_path: Path) -> None:
    plan = read_plan(shipped()[name], data_path=tmp_path)
    targets = tuple(replace(each, limit=1) for each in plan.targets[:1])
    plan = replace(
        plan, targets=targets, models=plan.models[:2], clients=plan.clients[:2],
        defenses=tuple(dict.fromkeys((plan.defenses[0], plan.defenses[-1]))), points=plan.points[::9],
        utility=None if plan.utility is None else replace(plan.utility, rounds=1),
        max_iterations=2, nulls=0, time_budget=2.0,
    )  # fmt: skip
    ledger = Ledger(str(tmp_path / "ledger.db"))
    run = add_run(ledger, plan)
    write_jobs(ledger, run)
    assert work(ledger.url, ledger.folder, run, new_owner()) == len(plan)
    failed = [(job.network, job.client, job.defenses, job.error) for job in ledger.jobs(run, "failed")]
    assert not failed
    assert all(row["state"] == "done" for row in (row_of(job, content) for job, content in ledger.rows(run)))
    ledger.close()


def test_what_stands_under_otherwise_is_taken_where_data_are_not_there(tmp_path: Path) -> None:
    text = """
    name: x
    targets: {dataset: CIFAR10, limit: 100, otherwise: {dataset: folder, otherwise: {dataset: photos, limit: 3}}}
    networks: [LeNetZhu, {ConvNet: {train: {dataset: CIFAR10, otherwise: skip}}}]
    """
    plan = parse_plan(text, data_path=tmp_path)
    assert [each.dataset for each in plan.targets] == ["photos"] and len(plan.models) == 1
    (tmp_path / "test" / "one").mkdir(parents=True)
    (tmp_path / "test" / "one" / "a.png").write_bytes(png(torch.rand(3, 32, 32)))
    assert parse_plan(text, data_path=tmp_path).targets[0].dataset == "folder"
    with pytest.raises(ConfigError, match="no network is left"):
        parse_plan("name: x\nnetworks: [{ConvNet: {train: {dataset: CIFAR10, otherwise: skip}}}]", data_path=tmp_path)


def test_rows_of_a_table_are_targets_and_come_back_from_the_ledger(tmp_path: Path) -> None:
    table = tmp_path / "bank.csv"
    cells = [f"{18 + 7 * n % 60},{'abc'[n % 3]},{'xyz'[n % 5 % 3]},{['no', 'yes'][n % 2]}" for n in range(40)]
    table.write_text("\n".join(["age,work,home,risk", *cells]) + "\n")
    plan = parse_plan(
        """
        name: bank
        targets: {table: bank.csv, target: risk, first: 3, limit: 2, num_images: 2}
        networks: ["mlp:30,30,gelu"]
        defenses: [none, GaussianNoise(0.1)]
        max_iterations: 2
        nulls: 0
        """,
        folder=tmp_path,
    )
    assert parse_plan(json.dumps(plan.to_dict())).to_dict() == plan.to_dict()
    ledger = Ledger(str(tmp_path / "ledger.db"))
    run = add_run(ledger, plan)
    write_jobs(ledger, run)
    assert work(ledger.url, ledger.folder, run, new_owner()) == 4
    rows = [row_of(job, content) for job, content in ledger.rows(run)]
    assert [row["images"] for row in rows] == ["bank 3", "bank 3", "bank 5", "bank 5"]
    assert [row["verdict"] for row in rows if row["defenses"] == "none"] == ["exact", "exact"]


def test_points_and_defend_are_of_pictures_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ConfigError, match="points are measured on pictures"):
        Plan("p", targets=(Targets(table=tmp_path / "t.csv"),), points=(Point("none"),))
    assert main(["defend", "--table", "t.csv", "--target", "x", "--points", "Clip(1.0)"]) != 0
    assert "on pictures" in capsys.readouterr().err
