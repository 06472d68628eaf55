"""What an audit asks of an attack: strangers written against the protocols alone, and findings that nobody reads."""

import dataclasses
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

import inversefed
from inversefed import Budget, FedSGD, Observation, Reconstruction, Status, ThreatModel, freeze, recipes
from inversefed.attacks import Attack, ExactMethod, Search, SearchAttack
from inversefed.attacks.adaptive import Adaptive
from inversefed.errors import ConfigError, UnsupportedNetworkError, UpdateMismatchError
from inversefed.findings import Code, Finding, table
from inversefed.fl import defenses
from inversefed.report.gate import leakage
from inversefed.report.gate import outcome as gated
from inversefed.types import Candidate
from inversefed.updates.diagnosis import diagnose, require_usable
from inversefed.updates.metadata import Metadata

SHAPE = (3, 4, 4)
SETTING = {"mean": 0.5, "std": 0.25, "threat": ThreatModel(labels="known")}


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


def image(seed: int = 1) -> Tensor:
    return torch.rand(1, *SHAPE, generator=Generator().manual_seed(seed))


@dataclass(frozen=True)
class Division:
    """A stranger's exact method: the weight's gradient over the bias's."""

    def check(self, observation: Observation) -> str:
        if "1.bias" not in observation.update:
            raise UnsupportedNetworkError("this needs a linear layer named 1")
        return "divides"

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        self.check(observation)
        gradient = observation.gradient
        row = int(gradient["1.bias"].abs().argmax())
        inputs = gradient["1.weight"][row] / gradient["1.bias"][row]
        images = observation.network.denormalize(inputs.reshape(observation.batch_shape))
        return Reconstruction(images, observation.labels, 0.0, Status.FINISHED)


@dataclass(frozen=True)
class Walk:
    """A stranger's search: steps along the derivative of the matching error."""

    restarts: int = 2
    iterations: int = 40
    far: bool = False
    blind: bool = False

    has_prior = False
    first_picture = 5

    @property
    def max_iterations(self) -> int:
        return self.iterations

    @property
    def planned_steps(self) -> int:
        return self.restarts * self.iterations

    def search(self, observation: Observation) -> "Walk":
        return self

    def with_settings(self, **changes: object) -> "Walk":
        if unknown := changes.keys() - {"restarts"}:
            raise ConfigError(f"Walk has no {', '.join(unknown)}")
        return replace(self, **changes)

    def one_start(self, apart: bool = False) -> "Walk":
        return replace(self, restarts=1, far=apart)

    def prior_alone(self, restarts: int) -> "Walk":
        return replace(self, restarts=restarts, blind=True)

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        found = []
        for number in range(self.restarts):
            images = torch.rand(observation.batch_shape, generator=generator) * (0.1 if self.far else 1.0)
            for _ in range(0 if self.blind else budget.max_iterations or self.iterations):
                images.requires_grad_()
                update = observation.client(observation.network, images, observation.labels)
                loss = sum((update[name] - part).square().sum() for name, part in observation.update.items())
                (slope,) = torch.autograd.grad(loss, images)
                images = (images - 0.3 * slope / slope.abs().max().clamp(min=1e-12)).clamp(0, 1).detach()
            steps = 1 if self.blind else budget.max_iterations or self.iterations
            found.append(Candidate(images, observation.labels, 0.0, iterations=steps, restart=number))
        return Reconstruction(found[0].images, found[0].labels, 0.0, Status.FINISHED, tuple(found))


def test_attacks_say_what_they_are_by_protocol() -> None:
    for exact in (recipes.linear(), recipes.peel(), recipes.separated(), recipes.april(), recipes.spear(), Division()):
        assert isinstance(exact, ExactMethod) and not isinstance(exact, SearchAttack)
    for search in (recipes.geiping(), Walk()):
        assert isinstance(search, Search) and not isinstance(search, ExactMethod)
    for chooser in (recipes.best(), Adaptive(recipes.geiping())):
        assert isinstance(chooser, SearchAttack) and isinstance(chooser, Attack) and not isinstance(chooser, Search)


def test_a_strangers_exact_method_is_audited_and_its_pictures_are_verified() -> None:
    report = inversefed.audit(linear(), image(), torch.tensor([2]), attack=Division(), **SETTING)
    assert report.reconstruction.matching_error < 1e-8 and report.reconstruction.made_by == "Division()"
    assert report.verdict.leaked and report.verdict.figures.exact and report.verdict.figures.nulls == 0
    runs = inversefed.audit(linear(), image(), torch.tensor([2]), attack=Division(), nulls=2, **SETTING)
    assert runs.verdict.figures.nulls == 2
    with pytest.raises(UnsupportedNetworkError, match="named 1"):
        inversefed.audit(nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(48, 5)), image(), torch.tensor([2]),
                         attack=Division(), **SETTING)  # fmt: skip


def test_a_strangers_search_is_repeated_on_null_updates_as_our_own_are() -> None:
    report = inversefed.audit(linear(), image(), torch.tensor([2]), attack=Walk(), nulls=3, **SETTING)
    figures = report.verdict.figures
    assert figures.nulls == 3 and figures.score_of_repeat is not None and "prior" in report.controls
    assert 5 <= figures.null_iterations <= 40 and len(report.reconstruction.candidates) == 2
    chosen = replace(recipes.best(), exact=())
    assert isinstance(chosen, SearchAttack)
    with pytest.raises(ConfigError, match="no precision"):
        Walk().with_settings(precision=None)


def test_what_is_no_search_or_no_result_is_refused_with_the_reason() -> None:
    class Half(Division):
        def search(self, observation: Observation) -> object:
            return Division()

        def with_settings(self, **changes: object) -> "Half":
            return self

    with pytest.raises(ConfigError, match=r"cannot be repeated for the controls.*first_picture.*one_start"):
        inversefed.audit(linear(), image(), torch.tensor([2]), attack=Half(), nulls=2, **SETTING)
    with pytest.raises(ConfigError, match="must return a Reconstruction"):
        inversefed.audit(linear(), image(), torch.tensor([2]), attack=lambda *_: image(), **SETTING)
    network = freeze(linear(), SHAPE)
    observation = Observation(network, FedSGD(), FedSGD()(network, image(), torch.tensor([2])), 1)
    with pytest.raises(ConfigError, match="pieces of a GradientInversion"):
        Adaptive(Walk(), defenses=(defenses.Clip(1.0),))(observation, Generator())


CONV = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4)]


def audits() -> list:
    """One of each way in which a finding used to steer: exact, not exact, defended, cut off from a verdict."""
    torch.manual_seed(0)
    conv, told = nn.Sequential(*CONV), ThreatModel(labels="known", defenses="known")
    common = {"mean": 0.5, "std": 0.25, "max_iterations": 5}
    return [
        inversefed.audit(linear(), image(), torch.tensor([2]), **common),
        inversefed.audit(linear(), image(), torch.tensor([2]), attack=recipes.linear(), nulls=0, **common),
        inversefed.audit(conv, image(), torch.tensor([2]), attack=recipes.peel(), nulls=1, **common),
        inversefed.audit(
            conv, image(), torch.tensor([2]), defenses=[defenses.GaussianNoise(1e-3)], threat=told, nulls=1, **common
        ),
    ]


def said(report: object) -> object:
    figures = asdict(report.verdict.figures) if report.verdict else {}
    figures.pop("seconds_of_controls", None)
    content = json.loads(report.to_json())
    verdict = report.verdict and (report.verdict.leaked, report.verdict.sentence)
    return verdict, repr(figures), report.digest.outcome, gated(leakage(content)), content["scores"], content["proven"]


def test_renaming_every_code_changes_no_reconstruction_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    network = freeze(nn.Sequential(*CONV), SHAPE)
    update = FedSGD()(network, image(), torch.tensor([2]))
    noisy = {name: part + 1e-3 * torch.randn_like(part) for name, part in update.items()}
    stated = Metadata(kind="gradient", num_examples=1)
    sent = (update, noisy, {name: -part for name, part in update.items()}, {"a": torch.zeros(1)})

    def everything() -> tuple:
        checked = [diagnose(network, each, stated) for each in sent]
        return audits(), [[(found.level, found.message) for found in each] for each in checked], checked[3]

    before, levels, _ = everything()
    made = Finding.__init__

    def renamed(
        self: Finding, code: str, level: str, message: str, evidence: object = None, unfit: bool = False
    ) -> None:
        made(self, f"renamed-{code}", level, message, {}, unfit)

    monkeypatch.setattr(Finding, "__init__", renamed)
    after, again, misfits = everything()
    assert all(found.code.startswith("renamed-") and not found.evidence for r in after for found in r.findings)
    assert again == levels
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first.reconstruction.images, second.reconstruction.images)
        assert said(first) == said(second)
    with pytest.raises(UpdateMismatchError):
        require_usable(misfits)


def test_every_code_has_a_meaning_and_the_page_of_the_reference_holds_them() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "findings.md").read_text(encoding="utf-8")
    assert table() in page
    rows = table().splitlines()[2:]
    assert len(rows) == len(Code) and list(Code) == sorted(Code)
    assert all(row.endswith(". |") and len(row.split(" | ")[1]) > 20 for row in rows)


def test_codes_are_written_as_members_and_never_read() -> None:
    import ast
    from pathlib import Path

    for file in Path(inversefed.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                assert not isinstance(node.args[0], ast.Constant), f"{file.name}:{node.lineno}"
            if isinstance(node, ast.Compare):
                read = [each for each in ast.walk(node) if isinstance(each, ast.Attribute)]
                names = {(getattr(each.value, "id", ""), each.attr) for each in read}
                asked = {("finding", "code"), ("found", "code"), ("f", "code"), ("each", "code")}
                asked |= {(name, "evidence") for name in ("finding", "f", "each")}
                assert not names & asked, f"{file.name}:{node.lineno} decides by a finding"


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_one_restart_is_rerun_alone_to_the_same_bits(noise: float) -> None:
    torch.manual_seed(0)
    network = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 4)), SHAPE)
    update = FedSGD()(network, image(), torch.tensor([2]))
    observation = Observation(network, FedSGD(), update, 1)
    attack = replace(recipes.geiping(restarts=4, max_iterations=12), noise=noise, keep="last", langevin=noise)
    whole = attack(observation, Generator().manual_seed(5))
    assert [each.restart for each in whole.candidates] == [0, 1, 2, 3]
    assert [each.seed is None for each in whole.candidates] == [not noise] * 4
    alone = attack(observation, Generator().manual_seed(5), Budget(restart=2))
    (candidate,) = alone.candidates
    assert torch.equal(candidate.images, whole.candidates[2].images) and torch.equal(alone.images, candidate.images)
    assert (candidate.restart, candidate.seed) == (2, whole.candidates[2].seed)
    assert candidate.history == whole.candidates[2].history
    with pytest.raises(ConfigError, match="4 restarts, from 0"):
        attack(observation, Generator(), Budget(restart=4))
    with pytest.raises(ConfigError, match="number of a restart"):
        Budget(restart=-1)


def test_a_pruned_restart_is_rerun_alone_beyond_where_it_was_dropped() -> None:
    torch.manual_seed(0)
    network = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 4)), SHAPE)
    observation = Observation(network, FedSGD(), FedSGD()(network, image(), torch.tensor([2])), 1)
    attack = recipes.geiping(max_iterations=30).with_settings(restarts=4, width=1)
    whole = attack(observation, Generator().manual_seed(5))
    dropped = next(each for each in whole.candidates if each.status is Status.PRUNED)
    alone = attack(observation, Generator().manual_seed(5), Budget(restart=dropped.restart))
    assert alone.candidates[0].history[: dropped.iterations] == dropped.history and alone.status is Status.FINISHED


def test_the_fields_of_a_reconstruction_are_measured_and_named() -> None:
    report = inversefed.audit(linear(), image(), torch.tensor([2]), mean=0.5, std=0.25)
    found = report.reconstruction
    assert found.proven and found.matching_error < 1e-8 and found.made_by == repr(recipes.linear())
    assert found.cut_short == () and {each.name for each in dataclasses.fields(found)} >= {"undetermined"}
    assert report.verdict.scope.startswith("Tried: AutoAttack, which chose LinearInput")


def test_the_page_shows_the_rules_that_the_default_attack_goes_by() -> None:
    page = (Path(__file__).parents[1] / "docs" / "internals" / "speed.md").read_text(encoding="utf-8")
    rules = recipes.table(recipes.best())
    assert rules in page
    rows = [row.split(" | ") for row in rules.splitlines()[2:]]
    assert len(rows) == len(recipes.best().exact) + len(recipes.best().searches) == 28
    assert all(len(row) == 3 and row[0] != "| else" and "{" not in row[2] for row in rows)
    assert {"`spectral`", "`smoothed`", "`curvature`", "`in_range`, 100 steps", "`peel`"} <= {row[1] for row in rows}
