"""Updates of tables and sentences where they come from: captures, federations, and a client's own audit."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inversefed
from inversefed.attacks import recipes
from inversefed.errors import ConfigError
from inversefed.experiments.ledger import Ledger
from inversefed.experiments.places import Places
from inversefed.fl.losses import NextToken
from inversefed.inputs import Category, Columns, Images, Number, Tokens
from inversefed.integrations.federated_audits import watch
from inversefed.integrations.federation import Federation, Inbox
from inversefed.integrations.self_audit import Policy, SelfAudit
from inversefed.types import Batch
from inversefed.updates.files import read_tensors
from inversefed.updates.metadata import Metadata
from inversefed.zoo import networks
from inversefed.zoo.networks.language import Bert

COLUMNS = Columns((
    Number("age", 18, 80, whole=True, mean=45, std=15), Number("amount", 0, 5000, mean=2000, std=900),
    *(Category(f"answer {number}", ("yes", "no", "none")) for number in range(8)),
))  # fmt: skip
LR = 0.1


def build() -> nn.Module:
    return networks.build("mlp:40,40,gelu", 3, seed=0, shape=COLUMNS.shape)


def rows(count: int = 2) -> Batch:
    return Batch(COLUMNS.stand_ins(count, torch.Generator().manual_seed(0)), torch.arange(count) % 3)


def standardized(inputs: Tensor) -> Tensor:
    mean, std = COLUMNS.normalization()
    return (inputs - mean) / std


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in module.state_dict().items()}


def stepped(module: nn.Module, batch: Batch) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    nn.functional.cross_entropy(module(standardized(batch.images)), batch.labels).backward()
    optimizer.step()


def test_a_captured_step_on_rows_gives_them_back() -> None:
    module, batch = build(), rows()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    with inversefed.capture(module, optimizer) as update:
        nn.functional.cross_entropy(module(standardized(batch.images)), batch.labels).backward()
        optimizer.step()
    assert update.check(batch.images, batch.labels, inputs=COLUMNS).level == "info"
    report = inversefed.audit_observation(update.observation(inputs=COLUMNS), truth=batch, nulls=0)
    assert report.reconstruction.proven and report.scores["exact_row"].tolist() == [1, 1]


def test_a_captured_step_on_a_sentence_gives_it_back() -> None:
    space, module = Tokens(10, 60), Bert(vocabulary=60, length=10, num_classes=3).eval()
    ids, labels = space.ids([[7, 41, 7, 30]]), torch.tensor([2])
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    with inversefed.capture(module, optimizer, sends="gradient") as update:
        nn.functional.cross_entropy(module(ids), labels).backward()
        optimizer.step()
    report = inversefed.audit_observation(
        update.observation(inputs=space), truth=Batch(ids, labels), attack=recipes.embedding_rows(), nulls=0
    )
    assert report.reconstruction.proven and report.reconstruction.images[0, :5].tolist() == [7, 41, 7, 30, 0]


def recovered(
    federation: Federation, before: dict[str, Tensor], after: dict[str, Tensor], stated: Metadata
) -> dict[str, Tensor]:
    """What the one audit of a federation recovers from one round of one client."""
    with Inbox(federation) as inbox:
        inbox.keep(1, "branch", before, after=after, metadata=stated)
    ledger = Ledger(federation.ledger)
    assert watch(inbox.folder, ledger, trust_code=True).counts["done"] == 1
    ((job, _),) = ledger.rows(ledger.run(federation.run))
    return read_tensors(Places(ledger.folder).job(job.hash) / "reconstruction.safetensors").tensors


def test_a_federation_of_a_table_is_audited_as_it_runs(tmp_path: Path) -> None:
    federation = Federation(
        "bank", f"{__name__}:build", inputs=repr(COLUMNS), nulls=0, ledger=str(tmp_path / "ledger.db"), watched=False
    )
    module = build()
    before = weights(module)
    stepped(module, rows())
    stated = Metadata(learning_rate=LR, local_steps=1, num_examples=2, inputs="columns")
    found = recovered(federation, before, weights(module), stated)
    order = found["labels"].argsort()
    torch.testing.assert_close(found["images"][order], rows().images, atol=1e-4, rtol=0)


def test_a_client_withholds_the_rows_that_its_update_gives_away() -> None:
    module = build()
    before = weights(module)
    stepped(module, rows())
    own = SelfAudit(
        Policy(max_leakage=3.0, above="withhold", unknown="pass", nulls=0), build, inputs=COLUMNS,
        truth=lambda _: rows(), stated=Metadata(learning_rate=LR, local_steps=1),
    )  # fmt: skip
    found = own.judge(1, before, weights(module), {}, 2, None)
    assert found.action == "withhold", found.reason


def test_a_perceptron_by_name_is_built_for_the_rows_of_the_client() -> None:
    module = networks.build("mlp:30,30,gelu", 10, seed=3, shape=COLUMNS.shape)
    before = weights(module)
    stepped(module, rows())
    stated = Metadata(learning_rate=LR, local_steps=1)
    own = SelfAudit(
        Policy(max_leakage=3.0, nulls=0), "mlp:30,30,gelu", inputs=COLUMNS, stated=stated, truth=lambda _: rows()
    )
    found = own.judge(1, before, weights(module), {}, 2, None)
    assert found.action == "withhold", found.reason


SENTENCES = Tokens(10, 60)
IDS = SENTENCES.ids([[7, 41, 7, 30], [9, 2, 55]])
TRAINING = {"lr": LR, "local-steps": 1}


def private_rows(_: object) -> Batch:
    """What a client's AuditFilter calls."""
    return rows()


def private_sentences(_: object) -> Batch:
    return Batch(IDS, torch.tensor([2, 0]))


def test_what_a_self_audit_is_fed_is_a_value_or_its_text() -> None:
    assert SelfAudit(Policy(), build, inputs=repr(COLUMNS)).space == COLUMNS
    assert SelfAudit(Policy(), build, inputs=SENTENCES).space == SENTENCES
    shapes = [SelfAudit(Policy(), name).space for name in (build, "BeyondInferringMNIST")]
    assert shapes == [Images((3, 32, 32)), Images((1, 28, 28))]
    with pytest.raises(ConfigError, match="Columns"):
        SelfAudit(Policy(), build, inputs="Rows(4)")
    with pytest.raises(ConfigError, match="give one of them"):
        SelfAudit(Policy(), build, image_shape=(3, 8, 8), inputs=COLUMNS)


def test_a_federation_of_a_language_model_by_name_is_audited_as_it_runs(tmp_path: Path) -> None:
    federation = Federation(
        "text", "Gpt", inputs=repr(SENTENCES), loss="NextToken", nulls=0, ledger=str(tmp_path / "ledger.db"),
        watched=False,
    )  # fmt: skip
    module = networks.transformer("Gpt", 60, 10, 0, None, seed=5)
    before, optimizer = weights(module), torch.optim.SGD(module.parameters(), lr=LR)
    NextToken()(module(IDS), IDS).backward()
    optimizer.step()
    stated = Metadata(learning_rate=LR, local_steps=1, num_examples=2, inputs="tokens")
    found = recovered(federation, before, weights(module), stated)
    assert {tuple(each) for each in found["images"].tolist()} == {tuple(each) for each in IDS.tolist()}


class FakeDXO:
    """What the filters use of FLARE's."""

    def __init__(self, data_kind: str, data: dict[str, Any], meta: dict[str, Any] | None = None) -> None:
        self.data_kind, self.data, self.meta = data_kind, data, meta or {}

    def get_meta_prop(self, name: str) -> object:
        return self.meta.get(name)

    def set_meta_prop(self, name: str, value: object) -> None:
        self.meta[name] = value


class FakeContext(dict[str, Any]):
    get_prop = dict.get

    def set_prop(self, name: str, value: object, **_: object) -> None:
        self[name] = value

    def get_identity_name(self) -> str:
        return "branch"


class FakeShareable(dict[str, Any]):
    get_header = get_cookie = dict.get


class FakeFilter:
    def __init__(self, **_: object) -> None:
        pass


@pytest.fixture
def flare(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The filters with stubs for the names that they take of FLARE, which is not needed for what they do."""
    stubs = {
        "apis.dxo": {
            "DXO": FakeDXO,
            "DataKind": SimpleNamespace(WEIGHTS="WEIGHTS", WEIGHT_DIFF="WEIGHT_DIFF"),
            "MetaKey": SimpleNamespace(PROCESSED_ALGORITHM="algorithm"),
        },
        "apis.dxo_filter": {"DXOFilter": FakeFilter},
        "apis.event_type": {"EventType": object},
        "apis.fl_context": {"FLContext": FakeContext},
        "apis.shareable": {"Shareable": FakeShareable},
        "app_common.app_constant": {
            "AppConstants": SimpleNamespace(CURRENT_ROUND="current_round", CONTRIBUTION_ROUND="contribution_round")
        },
    }
    for name in ("nvflare", "nvflare.apis", "nvflare.app_common"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, values in stubs.items():
        made = ModuleType(f"nvflare.{name}")
        vars(made).update(values)
        monkeypatch.setitem(sys.modules, made.__name__, made)
    name = "inversefed.integrations.nvflare"
    monkeypatch.setitem(sys.modules, name, ModuleType(name))  # so that what is there now is put back
    del sys.modules[name]
    yield importlib.import_module(name)


def left(flare: ModuleType, module: nn.Module, train: Any, **settings: Any) -> tuple[dict[str, Any], FakeDXO | None]:
    """The weights that a client was sent, and what its filter makes of a step from there."""
    before, context = weights(module), FakeContext()
    flare.SentFilter().process_dxo(FakeDXO("WEIGHTS", before), FakeShareable(), context)
    train(module)
    audit = flare.AuditFilter(training=TRAINING, max_leakage=3.0, nulls=0, **settings)
    return before, audit.process_dxo(FakeDXO("WEIGHTS", weights(module)), FakeShareable(current_round=0), context)


def test_a_filter_of_flare_withholds_rows_of_a_table(flare: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    module = networks.build("mlp:30,30,gelu", 3, seed=3, shape=COLUMNS.shape)
    before, sent = left(
        flare, module, lambda each: stepped(each, rows()), network="mlp:30,30,gelu", num_classes=3,
        inputs=repr(COLUMNS), truth=f"{__name__}:private_rows",
    )  # fmt: skip
    assert sent is not None and sent.meta == {"inversefed_withheld": True}, caplog.text
    assert all(torch.equal(sent.data[name], part) for name, part in before.items())
    assert "a row is recovered exactly" in caplog.text


@pytest.mark.parametrize(("network", "loss"), [("Bert:64", "CrossEntropy"), ("Gpt:64", "NextToken")])
def test_a_filter_of_flare_withholds_sentences(
    flare: ModuleType, caplog: pytest.LogCaptureFixture, network: str, loss: str
) -> None:
    language = loss == "NextToken"

    def train(module: nn.Module) -> None:
        optimizer, logits = torch.optim.SGD(module.parameters(), lr=LR), module(IDS)
        labels = private_sentences(None).labels
        (NextToken()(logits, IDS) if language else nn.functional.cross_entropy(logits, labels)).backward()
        optimizer.step()

    module = networks.transformer(network, 60, 10, 0, None if language else 3, seed=2)
    truth = "sentences_alone" if language else "private_sentences"
    _, sent = left(
        flare, module, train, network=network, loss=loss, num_classes=3, inputs=repr(SENTENCES),
        truth=f"{__name__}:{truth}",
    )  # fmt: skip
    assert sent is not None and sent.meta == {"inversefed_withheld": True}, caplog.text
    assert "a sentence is recovered exactly" in caplog.text


def sentences_alone(_: object) -> Batch:
    return Batch(IDS, IDS)


@pytest.mark.parametrize(
    "given", [{}, {"image_shape": [3, 8, 8], "inputs": repr(COLUMNS)}, {"inputs": "Rows(4)"}, {"inputs": "Tokens(4)"}]
)
def test_a_filter_of_flare_refuses_inputs_that_cannot_be_where_it_is_made(
    flare: ModuleType, given: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        flare.AuditFilter("mlp:30", **given)
