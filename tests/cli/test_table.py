"""Tables from the shell: a file in, its rows in the report out, for updates made here and elsewhere."""

import csv
import json
import random
from pathlib import Path

import pytest
from safetensors.torch import save_file

from inversefed.cli import main
from inversefed.errors import ConfigError, InputError
from inversefed.fl.clients import FedSGD
from inversefed.fl.network import freeze
from inversefed.specs.load_setting import load
from inversefed.specs.named_tables import NAMES, load_table
from inversefed.specs.sources import Sources, absolute, as_json, read_fields
from inversefed.zoo import networks

NETWORK = ["--network", "mlp:60,60,gelu"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank's table: a missing cell, dates, and names with a script in them."""
    draw, file = random.Random(0), tmp_path_factory.mktemp("bank") / "people.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["name", "joined", "age", "work", "school", "home", "purpose", "savings", "amount", "risk"])
        for number in range(120):
            writer.writerow([
                f"<script>alert({number})</script>", f"2020-01-{number % 28 + 1:02d}", draw.randint(18, 80),
                draw.choice(["private", "state", "none", "?"]), draw.choice(["primary", "secondary", "master"]),
                draw.choice(["own", "rent", "free"]), draw.choice(["car", "radio", "repairs", "education"]),
                draw.choice(["none", "some", "many"]), round(draw.uniform(100, 4000), 2), draw.choice(["good", "bad"]),
            ])  # fmt: skip
    return file


def rows_of(table: Path, places: range, into: Path) -> Path:
    """The same file with the header and these rows alone."""
    lines = table.read_text().splitlines()
    into.write_text("\n".join([lines[0], *(lines[1 + place] for place in places)]) + "\n")
    return into


def told(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_rows_of_a_table_are_recovered_with_their_targets_and_again_from_the_report(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shell = ["--table", str(people), "--target", "risk", *NETWORK, "--index", "5", "--num-images", "4"]
    assert main(["audit", *shell, "--output", str(tmp_path / "run")]) == 0
    printed, found = capsys.readouterr().out, told(tmp_path / "run")
    assert "amount: number from" in printed and "Column joined is left out" in printed
    assert found["verdict"]["answer"] == "recovered" and found["scores"]["exact_row"] == [1] * 4
    assert found["labels"]["recovered"] == load_table(people, "risk").targets[5:9].tolist()
    assert "<script>alert(" not in (tmp_path / "run" / "report.html").read_text()
    assert main(["audit", "--config", str(tmp_path / "run"), "--output", str(tmp_path / "again")]) == 2  # a folder
    report = str(tmp_path / "run" / "report.json")
    assert main(["audit", "--config", report, "--nulls", "0", "--quiet", "--output", str(tmp_path / "again")]) == 0
    again = told(tmp_path / "again")
    assert again["scores"]["exact_row"] == [1] * 4
    assert again["scenario"]["sha256"] == found["scenario"]["sha256"]


def test_an_update_from_a_file_is_held_against_the_rows_behind_it(people: Path, tmp_path: Path) -> None:
    table = load_table(people, "risk")
    module = networks.build("mlp:60,60,gelu", 2, seed=0, shape=table.columns.shape)
    network = freeze(module, table.columns)
    update = FedSGD()(network, table.rows[7:10], table.targets[7:10])
    save_file(dict(update), tmp_path / "u.safetensors", {"kind": "gradient", "num_examples": "3"})
    behind = rows_of(people, range(7, 10), tmp_path / "behind.csv")
    shell = ["--table", str(people), "--target", "risk", *NETWORK, "--update", str(tmp_path / "u.safetensors")]
    short = ["--nulls", "0", "--quiet", "--output", str(tmp_path / "run")]
    assert main(["audit", *shell, "--truth", str(behind), "--candidates", str(behind), *short]) == 0
    found = told(tmp_path / "run")
    assert found["scores"]["exact_row"] == [1] * 3 and found["scores"]["label_accuracy"] == [1] * 3
    assert found["membership"]["called"] == [True] * 3


def test_inspect_speaks_of_rows_and_of_the_methods_for_tables(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shell = ["inspect", "--table", str(people), "--target", "risk", *NETWORK, "--num-images", "2"]
    assert main(shell) == 0
    printed = capsys.readouterr().out
    assert "categories applies" in printed and "From the head to the row." in printed
    assert "image" not in printed and "picture" not in printed
    assert main([*shell, "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["identifiability"]["methods"]] == [
        "linear", "peel", "sparse", "categories",
    ]  # fmt: skip


def test_the_gate_refuses_a_leaking_table(people: Path, tmp_path: Path) -> None:
    shell = ["gate", "--table", str(people), "--target", "risk", *NETWORK, "--num-images", "2"]
    assert main([*shell, "--nulls", "0", "--quiet", "--output", str(tmp_path / "run")]) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--target", "risk", "--network", "ResNet18"], "--network mlp:200,200"),
        ([*NETWORK], "--target names the column"),
        (["--target", "nothing", *NETWORK], "there is no column nothing"),
        (["--target", "risk", "--network", "mlp:60,swish"], "mlp:200,200,gelu"),
        (["--target", "risk", *NETWORK, "--columns", "age"], "NAME=kind"),
        (["--target", "risk", *NETWORK, "--columns", "age=colour"], "leave out"),
        (["--target", "risk", *NETWORK, "--index", "119", "--num-images", "2"], "120 rows"),
        (["--target", "risk", *NETWORK, "--labels", "1"], "leave out --images"),
        (["--target", "risk", *NETWORK, "--candidates-out", "x.csv"], "--candidates"),
    ],
)
def test_what_cannot_be_is_told_with_its_cure(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture, given: list[str], message: str
) -> None:
    assert main(["audit", "--table", str(people), *given, "--output", str(tmp_path / "run")]) != 0
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_options_of_a_table_need_one() -> None:
    with pytest.raises(ConfigError, match="name it by --table"):
        load(Sources(target="risk"), 0)


def test_rows_behind_an_update_must_be_rows_of_the_table(people: Path, tmp_path: Path) -> None:
    table = load_table(people, "risk")
    other = tmp_path / "other.csv"
    other.write_text("age,work\n30,private\n")
    with pytest.raises(InputError, match="lacks"):
        table.more(other)
    lines = rows_of(people, range(1), tmp_path / "one.csv").read_text().replace("good", "unheard").replace(
        "bad", "unheard"
    )  # fmt: skip
    other.write_text(lines)
    assert table.more(other)[1].tolist() == [-1]  # a class that the table does not have


def test_kinds_of_columns_are_stated_and_stay_in_the_record(people: Path) -> None:
    named = absolute(Sources(table=people, target="risk", columns=("joined=category", "amount=leave out")))
    setting = load(Sources(**{**vars(named), "network": "mlp:20"}), 0)
    names = [column.name for column in setting.space.columns]
    assert "joined" in names and "amount" not in names
    assert Sources(**read_fields(Sources, as_json(named))) == named


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_scikit_learn_by_name(name: str) -> None:
    pytest.importorskip("sklearn")
    table = load_table(f"sklearn:{name}")
    assert len(table.rows) > 100 and table.targets is not None and bool(table.classes) == (name != "diabetes")
    assert absolute(Sources(table=Path(f"sklearn:{name}"))).table == Path(f"sklearn:{name}")


def test_a_table_by_a_wrong_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="breast_cancer"):
        load_table("sklearn:breastcancer")


def test_regression_takes_numbers_and_one_output(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    setting = load(Sources(table=Path("sklearn:diabetes"), network="mlp:20", num_images=3), 0)
    assert setting.labels.is_floating_point() and setting.labels.shape == (3,)
    assert list(setting.module.parameters())[-1].shape == (1,)


@pytest.mark.parametrize("received", [True, False])
def test_rows_that_equal_a_private_one_are_not_public(people: Path, tmp_path: Path, received: bool) -> None:
    twice = rows_of(people, range(8), tmp_path / "twice.csv")
    twice.write_text(twice.read_text() + people.read_text().splitlines()[2] + "\n")  # row 1 again
    update = {"update": Path("u.npz"), "truth": (rows_of(people, range(1, 3), tmp_path / "behind.csv"),)}
    given = update if received else {"index": 1, "num_images": 2}
    setting = load(Sources(table=twice, target="risk", network="mlp:8", **given), 0)
    assert len(setting.images) == 2 and len(setting.others.images) == 9 - 3
    apart = (setting.others.images[:, None] - setting.images).abs().amax(dim=2)
    assert float(apart.min()) > 0
