"""Updates of a federation, kept as they come in and audited by another process."""

import json
import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from inversefed.cli import main
from inversefed.errors import ConfigError, InputError
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.experiments.ledger import Ledger
from inversefed.experiments.places import Places
from inversefed.experiments.table import row_of
from inversefed.findings import Code, Finding
from inversefed.integrations import federated_audits
from inversefed.integrations.federated_audits import job_of_capture, scenario_of, watch, write_captured
from inversefed.integrations.federation import Federation, Inbox, captures, read_federation
from inversefed.scenario import Scenario
from inversefed.specs import public_images
from inversefed.updates.files import read_tensors
from inversefed.updates.metadata import Metadata

MEAN, STD, LR = 0.5, 0.25, 0.1
NETWORK = "tests.integrations.federated_network:build"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(
        "demo", NETWORK, image_shape=(3, 8, 8), mean=MEAN, std=STD, attack="linear", nulls=0,
        ledger=str(tmp_path / "ledger.db"), watched=False,
    )  # fmt: skip


def trained(sent: dict[str, Tensor], seed: int, count: int = 1) -> dict[str, Tensor]:
    """The weights of a client after one step of SGD on pictures of its own."""
    from tests.integrations.federated_network import build

    module = build()
    module.load_state_dict(sent)
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.rand(count, 3, 8, 8, generator=generator), torch.arange(count) % 4
    loss = nn.functional.cross_entropy(module((images - MEAN) / STD), labels)
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    return {
        name: weight.detach() - LR * part
        for (name, weight), part in zip(module.named_parameters(), gradients, strict=True)
    }


def sent_weights() -> dict[str, Tensor]:
    from tests.integrations.federated_network import build

    return {name: weight.detach().clone() for name, weight in build().state_dict().items()}


STATED = Metadata(learning_rate=LR, local_steps=1, num_examples=1)


def test_a_kept_update_is_audited_and_stands_in_the_ledger(federation: Federation) -> None:
    before = sent_weights()
    with Inbox(federation) as inbox:
        inbox.keep(1, "bank", before, after=trained(before, 0), metadata=STATED)
    ledger = Ledger(federation.ledger)
    assert watch(inbox.folder, ledger, trust_code=True).counts["done"] == 1
    ((job, content),) = ledger.rows(ledger.run("demo"))
    row = row_of(job, content)
    assert row["images"] == "round 1, client bank" and row["num_images"] == 1 and row["network"] == "build"
    files = Places(ledger.folder).job(job.hash)
    assert job.hash == json.loads((files / "report.json").read_text())["scenario"]["hash"]
    found = read_tensors(files / "reconstruction.safetensors").tensors["images"]
    private = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(peak_signal_noise_ratio(found, private)) > 40


@pytest.fixture
def no_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Public pictures are not read anew for each of many audits."""
    monkeypatch.setattr(public_images, "stand_ins", lambda *_: None)


def keep_fifty(federation: Federation) -> Path:
    """Ten clients that send the same in each of five rounds."""
    before = sent_weights()
    after = trained(before, 0)
    with Inbox(federation) as inbox:
        for number in range(1, 6):
            for client in range(10):
                assert inbox.keep(number, str(client), before, after=after, metadata=STATED) is not None
    assert len(list((inbox.folder / "weights").iterdir())) == 1
    return inbox.folder


@pytest.mark.usefixtures("no_stand_ins")
def test_ten_clients_by_five_rounds_are_fifty_jobs_though_all_send_the_same(federation: Federation) -> None:
    folder, ledger = keep_fifty(federation), Ledger(federation.ledger)
    run = ledger.add_run("demo", "{}")
    assert write_captured(ledger, run, federation, captures(folder)) == 50
    assert write_captured(ledger, run, federation, captures(folder)) == 0
    jobs = ledger.jobs(run)
    assert len(jobs) == len({job.hash for job in jobs}) == len({job.images for job in jobs}) == 50


@pytest.mark.slow
@pytest.mark.usefixtures("no_stand_ins")
def test_all_fifty_are_audited(federation: Federation) -> None:
    folder, ledger = keep_fifty(federation), Ledger(federation.ledger)
    standing = watch(folder, ledger, trust_code=True)
    assert standing is not None and standing.counts["done"] == 50
    results = [row_of(*each) for each in ledger.rows(ledger.run("demo"))]
    assert len({row["scenario"] for row in results if row["matching_error"] < 1e-5}) == 50


def test_nothing_that_was_kept_is_written_over(federation: Federation) -> None:
    before = sent_weights()
    inbox = Inbox(federation)
    first = inbox.keep(1, "a", before, after=trained(before, 0), metadata=STATED)
    assert first is not None
    content = (first / "update.safetensors").read_bytes()
    again = Inbox(federation).keep(1, "a", before, after=trained(before, 1), metadata=STATED)
    assert again is not None and again != first and (first / "update.safetensors").read_bytes() == content
    assert [each.name for each in captures(inbox.folder)] == ["round 1, client a", "round 1, client a, again 1"]
    # Several writers at once, as where two partitions call themselves the same.
    threads = [
        threading.Thread(target=lambda: Inbox(federation).keep(2, "a", before, after=content_of(before)))
        for _ in range(8)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(each.number for each in captures(inbox.folder) if each.round == 2) == list(range(8))


def content_of(before: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part + 1 for name, part in before.items()}


def test_only_their_owner_reads_them(federation: Federation) -> None:
    before = sent_weights()
    finding = Finding(Code.DIFFERENTIAL_PRIVACY, "info", "clipped")
    inbox = Inbox(federation)
    inbox.keep(1, "a", before, after=trained(before, 0), findings=[finding])
    kept = list(inbox.folder.rglob("*"))
    assert {stat.S_IMODE(each.stat().st_mode) for each in kept if each.is_file()} == {0o600}
    assert {stat.S_IMODE(each.stat().st_mode) for each in [inbox.folder, *kept] if each.is_dir()} == {0o700}
    assert not [each for each in kept if each.suffix in (".pt", ".pkl")]


def test_arrays_without_names_are_told_by_their_order_and_shapes(federation: Federation) -> None:
    before = sent_weights()
    after = trained(before, 0)
    with Inbox(federation) as inbox:
        inbox.keep(
            1, "named", [part.numpy() for part in before.values()], after=[after[name].numpy() for name in before],
            metadata=STATED,
        )  # fmt: skip
        numbered = {str(place): part.numpy() for place, part in enumerate(before.values())}
        inbox.keep(1, "numbered", numbered, after=list(after.values()), metadata=STATED)
        wrong = [after[name].numpy() for name in reversed(list(before))]
        inbox.keep(1, "reversed", numbered, after=wrong, metadata=STATED)
    ledger = Ledger(federation.ledger)
    watch(inbox.folder, ledger, trust_code=True)
    states = {job.images: (job.state, job.error) for job in ledger.jobs(ledger.run("demo"))}
    assert states["round 1, client named"][0] == states["round 1, client numbered"][0] == "done"
    state, error = states["round 1, client reversed"]
    assert state == "failed" and "shapes are not those of the network" in error


def test_an_update_that_cannot_be_kept_costs_a_line_in_the_log(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(federation)
    assert inbox.keep(1, "a", {"w": object()}, after={}) is None
    assert inbox.keep(1, "a", {}, after={}, update={}) is None
    inbox.folder.chmod(0o500)
    try:
        if os.geteuid():  # the owner of all may write everywhere
            assert inbox.keep(1, "a", sent_weights(), after={}) is None
    finally:
        inbox.folder.chmod(0o700)
    assert "not kept for the audit" in caplog.text and not captures(inbox.folder)


def test_rounds_and_clients_are_drawn(federation: Federation) -> None:
    few = replace(federation, every=3, clients=2)
    before, names = sent_weights(), tuple("abcde")
    inbox = Inbox(few)
    assert [inbox.keep(number, "a", before, after=before) is not None for number in (1, 2, 3, 4)] == [
        True,
        False,
        False,
        True,
    ]
    drawn = [few.drawn(number, names) for number in range(1, 30)]
    assert all(len(each) == 2 for each in drawn) and {name for each in drawn for name in each} == set(names)
    assert drawn == [few.drawn(number, names) for number in range(1, 30)]
    assert federation.drawn(1, names) == names


def test_clients_without_names(federation: Federation) -> None:
    inbox = Inbox(replace(federation, anonymous=True))
    before = sent_weights()
    kept = inbox.keep(1, "../Bank of Erewhon", before, after=before)
    assert kept is not None and kept.parent.name == "round-0001"
    assert "Erewhon" not in "".join(str(each) for each in captures(inbox.folder))
    assert inbox.called("a") == Inbox(inbox.federation).called("a") != inbox.called("b")
    # With names: no name leaves its folder, and none takes another's place.
    plain = Inbox(replace(federation, run="plain"))
    places = {plain.keep(1, name, before, after=before) for name in ("../a", "..", "", "/a", "_._a", "a/../a")}
    assert len(places) == 6 and all(each.parent == plain.folder / "round-0001" for each in places)


def test_settings_are_read_back(federation: Federation) -> None:
    given = replace(federation, client="FedAvg(epochs=2, lr=0.1)", mean=(0.5, 0.4, 0.3), every=2)
    assert read_federation(Inbox(given).folder) == given
    with pytest.raises(InputError, match="keeps no updates"):
        read_federation(federation.folder.parent / "other")


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for wrong in (
        {"run": "../x"},
        {"every": 0},
        {"attack": "best of all"},
        {"client": "FedAvg(epoch=1)"},
        {"nice": 20},
    ):
        with pytest.raises(ConfigError):
            Federation(**{"run": "demo", "network": "ConvNet", **wrong})


def test_code_is_run_only_where_it_is_trusted(federation: Federation) -> None:
    with Inbox(federation) as inbox:
        inbox.keep(1, "a", sent_weights(), after=sent_weights())
    with pytest.raises(ConfigError, match="--trust-code"):
        watch(inbox.folder, Ledger(federation.ledger))


def test_what_protects_an_update_stands_in_its_report(federation: Federation) -> None:
    before = sent_weights()
    note = Finding(Code.DIFFERENTIAL_PRIVACY, "info", "The server adds noise to the average.", {"std": 0.1})
    with Inbox(federation) as inbox:
        inbox.keep(1, "a", before, after=trained(before, 0), metadata=STATED, findings=[note])
    (kept,) = captures(inbox.folder)
    found = scenario_of(federation, kept).loaded().at_hand.findings
    assert note in found and found[0] == note


def test_a_job_runs_again_by_its_record(federation: Federation) -> None:
    before = sent_weights()
    with Inbox(federation) as inbox:
        inbox.keep(1, "a", before, after=trained(before, 0), metadata=STATED)
    job = job_of_capture(federation, captures(inbox.folder)[0])
    again = Scenario.from_dict(json.loads(job.scenario), trust_code=True)
    assert again.hash() == again.loaded().hash() == job.hash


def test_a_killed_process_is_followed_by_another(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sent_weights()
    with Inbox(federation) as inbox:
        for client in "abc":
            inbox.keep(1, client, before, after=trained(before, 0), metadata=STATED)
    ledger = Ledger(federation.ledger)

    def killed(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(federated_audits, "run_job", killed)
        with pytest.raises(KeyboardInterrupt):
            watch(inbox.folder, ledger, trust_code=True)
    run = ledger.run("demo")
    assert ledger.standing(run).counts["running"] == 1
    (taken,) = ledger.jobs(run, "running")
    ledger.release(taken.owner, died=True)  # as `release_dead` does for a process that is gone
    assert watch(inbox.folder, ledger, trust_code=True).counts["done"] == 3
    assert write_captured(ledger, run, federation, captures(inbox.folder)) == 0


def done_when_closed(inbox: Inbox, federation: Federation) -> int:
    """How many audits are done once its process has ended, which it does well."""
    process = inbox._process
    assert process is not None
    inbox.close()
    assert process.wait(timeout=120) == 0, (inbox.folder / "watch.log").read_text()
    ledger = Ledger(federation.ledger)
    return ledger.standing(ledger.run("demo")).counts["done"]


def test_the_process_is_begun_by_keeping_and_again_where_it_was_killed(federation: Federation) -> None:
    before = sent_weights()
    inbox = Inbox(replace(federation, watched=True, nice=0))
    inbox.keep(1, "a", before, after=trained(before, 0), metadata=STATED)
    first = inbox._process
    assert first is not None
    first.kill()
    first.wait()
    assert inbox.keep(2, "a", before, after=trained(before, 1), metadata=STATED) is not None
    second = inbox._process
    assert second is not None and second.pid != first.pid
    assert done_when_closed(inbox, federation) == 2


def test_the_process_takes_no_package_from_an_environment_that_is_removed_with_the_run(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Flower makes one for an app's dependencies; half of it may be gone when a module there is imported."""
    packages = tmp_path / "of-the-run" / "site-packages"
    (packages / "numpy").mkdir(parents=True)
    (packages / "numpy" / "__init__.py").write_text("raise ImportError('this was removed')\n")
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "of-the-run"))
    monkeypatch.syspath_prepend(packages)
    before = sent_weights()
    inbox = Inbox(replace(federation, watched=True, nice=0))
    inbox.keep(1, "a", before, after=trained(before, 0), metadata=STATED)
    assert done_when_closed(inbox, federation) == 1


def test_only_one_process_audits_a_run(federation: Federation) -> None:
    with Inbox(federation) as inbox:
        inbox.keep(1, "a", sent_weights(), after=sent_weights())
    ledger = Ledger(federation.ledger)
    with federated_audits._alone(inbox.folder) as first:
        assert first and watch(inbox.folder, ledger, trust_code=True) is None


def test_a_federation_whose_process_is_gone_is_over(federation: Federation) -> None:
    program = (
        "import sys; from pathlib import Path; from inversefed.integrations.federation import Federation, Inbox; "
        f"inbox = Inbox(Federation('demo', {NETWORK!r}, ledger={federation.ledger!r}, watched=False)); "
        "inbox.keep(1, 'a', {'w': [1.0]}, after={'w': [2.0]})"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=120)
    ledger = Ledger(federation.ledger)
    standing = watch(federation.folder, ledger, trust_code=True)  # ends though nobody said that it is over
    assert standing is not None and standing.counts["failed"] == 1


def test_a_run_is_removed_with_the_updates_that_it_kept(federation: Federation, capsys: pytest.CaptureFixture) -> None:
    with Inbox(federation) as inbox:
        inbox.keep(1, "a", sent_weights(), after=sent_weights())
    ledger = Ledger(federation.ledger)
    ledger.add_run("demo", "{}")
    (ledger.folder / "updates" / "mine").mkdir()
    assert main(["runs", "--ledger", federation.ledger, "--remove", "demo", "--yes"]) == 0
    assert not inbox.folder.exists() and (ledger.folder / "updates" / "mine").exists()
