"""Updates of tables and sentences where they come from: captures, federations, and a client's own audit."""

from pathlib import Path

import torch
from torch import Tensor, nn

import inversefed
from inversefed.attacks import recipes
from inversefed.experiments.ledger import Ledger
from inversefed.experiments.places import Places
from inversefed.inputs import Category, Columns, Number, Tokens
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


def test_a_federation_of_a_table_is_audited_as_it_runs(tmp_path: Path) -> None:
    federation = Federation(
        "bank", f"{__name__}:build", inputs=repr(COLUMNS), nulls=0, ledger=str(tmp_path / "ledger.db"), watched=False
    )
    module = build()
    before = weights(module)
    stepped(module, rows())
    stated = Metadata(learning_rate=LR, local_steps=1, num_examples=2, inputs="columns")
    with Inbox(federation) as inbox:
        inbox.keep(1, "branch", before, after=weights(module), metadata=stated)
    ledger = Ledger(federation.ledger)
    assert watch(inbox.folder, ledger, trust_code=True).counts["done"] == 1
    ((job, _),) = ledger.rows(ledger.run("bank"))
    found = read_tensors(Places(ledger.folder).job(job.hash) / "reconstruction.safetensors").tensors
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
