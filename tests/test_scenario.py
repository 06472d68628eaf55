"""One value for all that an audit is: its hash, its record, and the same audit from Python, shell and report."""

import json
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from torch import Generator, nn

import inversefed
from inversefed import Batch, FedAvg, Scenario, ThreatModel, defenses, recipes
from inversefed.cli import main
from inversefed.errors import ConfigError, InputError
from inversefed.fl.losses import CrossEntropy
from inversefed.fl.network import freeze
from inversefed.scenario import Hashes
from inversefed.specs.sources import Sources
from inversefed.specs.written import hash_of_network
from inversefed.zoo import networks, pictures

QUICK = recipes.geiping(max_iterations=2)


def images(n: int = 1) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=Generator().manual_seed(0))


def of(module: nn.Module, x: torch.Tensor | None = None, label: int = 1, **settings: object) -> Scenario:
    x = images() if x is None else x
    given = {name: settings.pop(name) for name in ("others", "mean", "std") if name in settings}
    return Scenario(**{"attack": QUICK, "nulls": 0} | settings).of(module, x, torch.tensor([label]), **given)


def test_the_hash_is_that_of_the_same_audit_and_of_no_other(tiny: nn.Module) -> None:
    first = of(tiny)
    assert first.hash() == of(tiny).hash() and len(first.hash()) == 64
    assert first.hash() == of(tiny, client=inversefed.FedSGD(), seed=0).hash()
    pixel = images()
    pixel[0, 2, 7, 7] += 1e-6
    others = Batch(images(3), torch.tensor([0, 1, 2]))
    changed = {
        "pixel": of(tiny, pixel),
        "label": of(tiny, label=2),
        "mean": of(tiny, mean=0.5),
        "others": of(tiny, others=others),
        "train mode": of(nn.Sequential(*tiny, nn.Dropout(0.0)).train()),
    }
    settings = {
        "seed": 1, "nulls": 1, "rehearsals": 2, "rehearsal_time": 9.0, "time_budget": 30.0, "max_iterations": 3,
        "client": FedAvg(1, lr=0.1),
        "defenses": (defenses.Clip(1.0),), "threat": ThreatModel(labels="known"), "attack": recipes.geiping(),
        "loss": CrossEntropy(label_smoothing=0.1),
    }  # fmt: skip
    changed |= {name: of(tiny, **{name: value}) for name, value in settings.items()}
    with torch.no_grad():
        tiny[3].weight[1, 5] += 1e-6
    changed["weight"] = of(tiny)
    changed["activation"] = of(nn.Sequential(tiny[0], nn.Tanh(), *tiny[2:]))
    changed["frozen"] = of(_frozen(tiny))
    assert len({first.hash(), *(each.hash() for each in changed.values())}) == 1 + len(changed)


def _frozen(module: nn.Module) -> nn.Module:
    next(iter(module.parameters())).requires_grad_(False)
    return module


def test_every_setting_of_a_scenario_is_part_of_its_hash_but_where_things_are_found_and_with_what(
    tiny: nn.Module,
) -> None:
    found = of(tiny)
    record = of(tiny, rehearsals=2, rehearsal_time=9.0, choose=True).to_dict()  # left out where they are not asked for
    beside = {"sources", "records", "versions", "held", "inputs"}  # inputs that are no pictures: tests/inputs
    named = {"threat": "threat_model"}
    for each in fields(Scenario):
        if each.name not in beside:
            assert named.get(each.name, each.name) in record
    assert replace(found, versions={"torch": "0.1"}, sources=Sources(index=4)).hash() == found.hash()


@pytest.mark.usefixtures("unchecked")
def test_a_whole_number_is_the_same_as_an_integer_or_a_float(tiny: nn.Module) -> None:
    one, same, other = (of(tiny, client=FedAvg(1, lr=lr)) for lr in (1, 1.0, 1.5))
    assert one.hash() == same.hash() != other.hash()


def test_weights_within_a_loss_and_values_within_a_function_are_told_apart(tiny: nn.Module) -> None:
    def scaled(by: float) -> object:
        return lambda outputs, labels: by * nn.functional.cross_entropy(outputs, labels)

    weighted = [nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, 1.0, last])) for last in (1.0, 2.0)]
    found = [of(tiny, loss=loss) for loss in (*weighted, scaled(1.0), scaled(2.0), scaled(2.0))]
    assert len({each.hash() for each in found}) == 4 and found[3].hash() == found[4].hash()
    record = json.loads(json.dumps(found[2].to_dict()))
    with pytest.raises(ConfigError, match=r"loss of this audit was code .* no text builds it"):
        Scenario.from_dict(record)


def test_a_record_comes_back_and_one_that_was_changed_is_refused(tiny: nn.Module) -> None:
    found = of(tiny, defenses=(defenses.Clip(1.0),), threat=ThreatModel(labels="known"), seed=3)
    record = json.loads(json.dumps(found.to_dict()))
    again = Scenario.from_dict(record)
    assert again == found and again.hash() == found.hash() == record["hash"]
    with pytest.raises(InputError, match="changed after it was written"):
        Scenario.from_dict({**record, "seed": 4})
    with pytest.raises(ConfigError, match="did you mean attack"):
        Scenario.from_dict({**record, "attak": "geiping"})
    with pytest.raises(ConfigError, match="did you mean labels"):
        Scenario.from_dict({**record, "threat_model": {"label": "known"}})
    with pytest.raises(ConfigError, match="seed of a scenario must be a number"):
        Scenario.from_dict({"seed": "1"})
    with pytest.raises(ConfigError, match="once its network and pictures are there"):
        Scenario().hash()


def test_a_report_of_values_runs_again_from_the_same_values_and_no_others(tiny: nn.Module, tmp_path: Path) -> None:
    x, y = images(), torch.tensor([1])
    report = inversefed.audit(tiny, x, y, mean=0.5, std=0.25, attack=QUICK, nulls=1, seed=5)
    report.save(tmp_path / "one")
    with pytest.raises(InputError, match="names neither its network nor its pictures"):
        Scenario.from_report(tmp_path / "one")
    with pytest.raises(InputError, match="without images, labels"):
        Scenario.from_report(tmp_path / "one", module=tiny)
    with pytest.raises(InputError, match=r"the pictures of this audit: SHA-256 .* recorded"):
        Scenario.from_report(tmp_path / "one", module=tiny, images=x * 0.99, labels=y)
    with pytest.raises(InputError, match="the labels of this audit"):
        Scenario.from_report(tmp_path / "one", module=tiny, images=x, labels=y + 1)
    scenario = Scenario.from_report(tmp_path / "one", module=tiny, images=x, labels=y)
    again = inversefed.audit(scenario)
    assert torch.equal(again.images, report.images) and scenario.hash() == report.scenario["hash"]
    assert again.to_dict()["scenario"] == report.to_dict()["scenario"]
    assert torch.equal(again.controls["null"], report.controls["null"])
    other = replace(scenario, seed=6)
    assert other.hash() != scenario.hash() and not torch.equal(inversefed.audit(other).images, report.images)
    with pytest.raises(ConfigError, match="holds all settings"):
        inversefed.audit(scenario, seed=6)
    with torch.no_grad():
        tiny[0].bias[0] += 1
    with pytest.raises(InputError, match="the network of this audit"):
        Scenario.from_report(tmp_path / "one", module=tiny, images=x, labels=y)
    assert main(["audit", "--config", str(tmp_path / "one" / "report.json")]) == 2


def test_an_update_from_outside_has_a_scenario_too(tiny: nn.Module) -> None:
    from inversefed.fl.simulate import observed

    observation, truth = observed(tiny, images(), torch.tensor([1]))
    report = inversefed.audit_observation(observation, truth=truth, attack=QUICK, nulls=0)
    record = report.scenario
    assert record["sha256"]["update"] and record["sha256"]["images"]
    again = Scenario.from_dict(json.loads(report.to_json())["scenario"]).received(observation, truth)
    assert torch.equal(inversefed.audit(again).images, report.images) and again.hash() == record["hash"]
    shifted = {name: part + 1e-6 for name, part in observation.update.items()}
    with pytest.raises(InputError, match="the update of this audit"):
        again.received(replace(observation, update=shifted), truth)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A report that the command line wrote."""
    monkeypatch.chdir(tmp_path)
    command = ["audit", "--attack", "geiping(max_iterations=2)", "--nulls", "0", "--quiet", "--device", "cpu"]
    assert main([*command, "--output", "one", "--defenses", "Clip(1.0)"]) == 0
    found: dict[str, object] = json.loads(Path("one/report.json").read_text())
    return found


def test_python_shell_report_and_worker_have_the_same_hash_and_figures(shell: dict, tmp_path: Path) -> None:
    record = shell["scenario"]
    told = Scenario.from_report("one")
    assert told.loaded().hash() == record["hash"]
    again = inversefed.audit(told)
    assert again.to_dict()["scores"] == shell["scores"] and again.scenario["hash"] == record["hash"]

    named = Scenario(Sources(), attack=QUICK, nulls=0, defenses=(defenses.Clip(1.0),))
    assert named.loaded().hash() == record["hash"]

    held = told.loaded().held
    module = networks.build("LeNetZhu", held.network.num_classes, 3, 0).eval()
    chosen = held.truth.images
    values = Scenario(attack=QUICK, nulls=0, defenses=(defenses.Clip(1.0),)).of(
        module, chosen, held.truth.labels, held.others, told.mean, told.std
    )
    assert values.hash() == record["hash"]

    assert main(["audit", "--config", "one/report.json", "--output", "two", "--quiet"]) == 0
    two = json.loads(Path("two/report.json").read_text())
    assert two["scenario"] == record and two["scores"] == shell["scores"] and two["config"] == shell["config"]

    Path("job.json").write_text(json.dumps(record))
    code = (
        "import json, sys, inversefed\n"
        "import torch; torch.set_num_threads(1)\n"
        "scenario = inversefed.Scenario.from_dict(json.load(open('job.json')))\n"
        "report = inversefed.audit(scenario)\n"
        "assert not any(name.startswith('inversefed.cli') or name == 'tyro' for name in sys.modules)\n"
        "print(json.dumps([report.scenario['hash'], report.to_dict()['scores']]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [record["hash"], shell["scores"]]


def test_a_report_made_in_python_of_names_runs_in_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threat = ThreatModel(labels="known")
    scenario = Scenario(Sources(index=1), attack=QUICK, nulls=0, max_iterations=1, threat=threat, seed=2)
    report = inversefed.audit(scenario)
    report.save("python")
    assert report.config == {}
    assert main(["audit", "--config", "python/report.json", "--output", "shell", "--quiet", "--device", "cpu"]) == 0
    found = json.loads(Path("shell/report.json").read_text())
    assert found["scenario"]["hash"] == report.scenario["hash"] and found["scores"] == report.to_dict()["scores"]


def test_the_shell_refuses_a_file_that_is_no_longer_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from inversefed.report.png import png

    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(png(pictures.photo(pictures.photo_names()[0], (3, 32, 32))))
    common = ["--attack", "geiping(max_iterations=1)", "--nulls", "0", "--quiet", "--device", "cpu"]
    assert main(["audit", "--images", "x.png", "--output", "one", *common]) == 0
    Path("x.png").write_bytes(png(pictures.photo(pictures.photo_names()[1], (3, 32, 32))))
    assert main(["audit", "--config", "one/report.json", "--output", "two"]) == 2
    assert "the pictures of this audit: SHA-256" in capsys.readouterr().err
    assert not Path("two").exists()
    assert main(["audit", "--config", "one/report.json", "--output", "two", "--seed", "1", "--quiet"]) == 0


OWN = """
from dataclasses import dataclass
from inversefed import recipes

@dataclass(frozen=True)
class Slow:
    steps: int = 2
    def __call__(self, observation, generator, budget):
        return recipes.geiping(max_iterations=self.steps)(observation, generator, budget)

class Broken:
    def __init__(self):
        raise TypeError("no")

@dataclass(frozen=True)
class Darkness:
    weight: float = 0.1
    def __call__(self, images):
        return self.weight * images.square().mean()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_pieces.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_pieces"


def test_a_piece_of_ones_own_is_built_only_where_code_is_trusted(own: str, capsys: pytest.CaptureFixture) -> None:
    common = ["--nulls", "0", "--quiet", "--device", "cpu"]
    assert main(["audit", "--attack", f"{own}:Slow(1)", "--output", "no", *common]) == 2
    assert "--trust-code" in capsys.readouterr().err and own not in sys.modules
    assert main(["audit", "--attack", f"{own}:Slow(1)", "--output", "one", "--trust-code", *common]) == 0
    found = json.loads(Path("one/report.json").read_text())
    assert found["scenario"]["attack"] == f"{own}:Slow(steps=1)" and "trust_code" not in found["config"]
    with pytest.raises(ConfigError, match="names code"):
        Scenario.from_report("one")
    told = Scenario.from_report("one", trust_code=True)
    assert inversefed.audit(told).scenario["hash"] == found["scenario"]["hash"]
    assert main(["audit", "--config", "one/report.json", "--output", "two", *common]) == 2
    assert main(["audit", "--config", "one/report.json", "--output", "two", "--trust-code", *common]) == 0
    config = {**found["config"], "trust_code": True}
    Path("trusting.json").write_text(json.dumps(config))
    assert main(["audit", "--config", "trusting.json", "--output", "three", *common]) == 2
    assert "only who runs it may say so" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(recipes.__all__))
def test_every_recipe_is_written_as_its_repr_which_builds_it(name: str) -> None:
    from inversefed.specs import registry
    from inversefed.specs.written import written

    recipe = getattr(recipes, name)()
    assert written(recipe) == repr(recipe) and registry.build("attack", written(recipe)) == recipe


def test_pieces_within_pieces_may_be_ones_own(own: str) -> None:
    from inversefed.specs import registry
    from inversefed.specs.written import written

    text = f"GradientInversion(priors=({own}:Darkness(weight=0.5),))"
    built = registry.build("attack", text, trust_code=True)
    assert built.priors[0].weight == 0.5
    assert f"{own}:Darkness(weight=0.5)" in written(built)
    assert registry.build("attack", written(built), trust_code=True) == built
    for hidden in (text, f"'{own}:Darkness' or {own}:Darkness()", f"__foreign__{own}__in__Slow(1)"):
        with pytest.raises(ConfigError):
            registry.build("attack", hidden)
    with pytest.raises(ConfigError, match="raised TypeError"):
        registry.build("attack", f"{own}:Broken", trust_code=True)


def test_a_network_that_names_code_is_refused_in_a_record() -> None:
    with pytest.raises(ConfigError, match="names code to run as its network"):
        Scenario.from_dict({"sources": {"network": "os:getcwd"}})
    assert Scenario.from_dict({"sources": {"network": "os:getcwd"}}, trust_code=True).sources.network == "os:getcwd"


def test_what_a_loaded_network_holds_cannot_be_replaced_beside_it(tiny: nn.Module) -> None:
    found = of(tiny, mean=0.5)
    for change in ({"loss": CrossEntropy(label_smoothing=0.1)}, {"mean": (0.1, 0.1, 0.1)}):
        with pytest.raises(ConfigError, match="stay as they are"):
            replace(found, **change)
    assert replace(found, client=FedAvg(1, lr=0.1)).hash() != found.hash()


def test_importing_the_pipeline_imports_no_data_sets() -> None:
    code = "import sys, inversefed.pipeline; sys.exit(any(m.startswith('inversefed.zoo') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hashes_not_recorded_are_not_compared(tiny: nn.Module) -> None:
    found = of(tiny)
    assert asdict(replace(found, sha256=Hashes()).sha256) == dict.fromkeys(asdict(Hashes()))
    assert replace(found, sha256=Hashes()).of(tiny, images() / 2, torch.tensor([1])).hash() != found.hash()


def test_a_network_that_holds_itself_foreign_objects_and_unfilled_closures_has_a_hash() -> None:
    class Slotted:
        __slots__ = ("value",)

    def module(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))

        def hook(*_: object) -> None:
            kept.append(hook)
            later()

        kept, made.helper, made.slotted = [hook], hook, [Slotted()]
        kept.append(kept)
        if seed < 0:
            later = hook
        return made

    first, same, other = (hash_of_network(freeze(module(seed), (3, 4, 4))) for seed in (0, 0, 1))
    assert first == same != other
