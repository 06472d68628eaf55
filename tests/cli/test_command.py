"""The command as a user types it: what it prints, writes and returns."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inversefed
from inversefed.cli import main
from inversefed.cli.options import parse
from inversefed.zoo import networks
from inversefed.zoo.checkpoints import save_checkpoint

QUICK = ["--max-iterations", "3", "--nulls", "0", "--quiet"]
PLAIN = ["--attack", "geiping", *QUICK]
"""Where it does not matter which attack runs: the default one tries its exact methods first."""

FACTORY = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.GELU(), nn.Flatten())
        self.head = nn.Linear(512, 5)
    def forward(self, x):
        return self.head(self.body(x))
def make():
    torch.manual_seed(1)
    return Net()
def wrong():
    return 3
def normed():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
"""


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def picture(path: Path, side: tuple[int, int] = (40, 50)) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (side[1], side[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def read(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_an_audit_of_the_bundled_photograph_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["audit", "--output", "out", "--max-iterations", "5"]) == 0
    out = capsys.readouterr().out
    assert "gray" in out and "constant" in out and "out/report.html" in out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.html", "report.json", "target_00.png", "reconstruction_00.png"} <= written
    report = read(tmp_path / "out")
    assert len(report["scores"]["peak_signal_noise_ratio"]) == 1
    assert report["scenario"]["network"] == "LeNetZhu" or report["scenario"]["image_shape"] == [3, 32, 32]
    assert report["scenario"]["threat_model"]["labels"] == "unknown"


def test_without_output_each_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    assert main(["audit", *PLAIN]) == 0 and main(["audit", *PLAIN]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_an_existing_output_is_refused_before_the_work_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["audit", "--output", "out", *PLAIN]) == 0
    before = (tmp_path / "out/report.json").read_text()
    assert main(["audit", "--output", "out", *PLAIN, "--seed", "1"]) == 2
    assert "overwrite" in capsys.readouterr().err
    assert (tmp_path / "out/report.json").read_text() == before
    assert main(["audit", "--output", "out", "--overwrite", *PLAIN, "--seed", "1"]) == 0
    assert (tmp_path / "out/report.json").read_text() != before


def test_json_is_all_that_standard_output_holds(capsys: pytest.CaptureFixture) -> None:
    attack = ["--attack", "geiping", "--max-iterations", "3", "--nulls", "0"]
    assert main(["audit", "--json", "--output", "out", *attack]) == 0
    assert json.loads(capsys.readouterr().out) == read(Path("out"))


def test_inspect_counts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "--network", "AllConv"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("determined: ") and "conv2" in out and "peels 5 of 11 layers" in out
    assert max(len(line) for line in out.splitlines()) <= 100
    options = ["--num-images", "3", "--network", "ResNet20", "--client", "FedAvg(local_steps=1, lr=0.1)", "--json"]
    assert main(["inspect", *options]) == 0
    found = json.loads(capsys.readouterr().out)["identifiability"]
    assert found["verdict"] == "open" and found["examples"] == found["least_examples"] == 3
    assert found["layers"][0]["name"] == "fc" and found["unknowns"] == 3 * 3072
    assert [method["applies"] for method in found["methods"]] == [False] * 5
    assert not list(tmp_path.iterdir())


def test_inspect_refuses_what_an_audit_refuses(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "--network", "LeNetZu"]) == 2
    assert "did you mean LeNetZhu" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["inspect", "--attack", "geiping"])


def test_pictures_of_any_size_with_their_labels(tmp_path: Path) -> None:
    paths = [str(picture(tmp_path / f"p{i}.png", (40 + i, 60))) for i in range(2)]
    assert main(["audit", "--images", *paths, "--labels", "3", "7", "--known-labels", "--output", "out", *PLAIN]) == 0
    report = read(tmp_path / "out")
    assert report["labels"] == {"recovered": [3, 7], "true": [3, 7]}
    assert report["scenario"]["num_examples"] == 2 and report["scenario"]["threat_model"]["labels"] == "known"


def test_every_choice_reaches_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_mod_d.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    arguments = [
        "audit", "--output", "out", "--network", "my_mod_d:make", "--image-shape", "3", "16", "16",
        "--client", "FedAvg(local_steps=2, lr=0.01)",
        "--defenses", "Clip(max_norm=1.0)", "GaussianNoise(std=0.001)", "--attack", "geiping(restarts=2)",
        "--loss", "CrossEntropy(label_smoothing=0.1)", "--mean", "0.4", "--std", "0.2", "0.3", "0.4", "--seed", "3",
        "--index", "1", "--num-images", "2", "--device", "cpu", "--known-labels", *QUICK,
    ]  # fmt: skip
    assert main(arguments) == 0
    report = read(tmp_path / "out")
    scenario = report["scenario"]
    assert scenario["num_classes"] == 5 and scenario["image_shape"] == [3, 16, 16]
    assert scenario["client"].startswith("FedAvg(local_steps=2, lr=0.01")
    assert scenario["defenses"] == ["Clip(max_norm=1.0)", "GaussianNoise(std=0.001)"]
    assert scenario["loss"] == "CrossEntropy(reduction='mean', label_smoothing=0.1)"
    assert scenario["mean"] == pytest.approx([0.4] * 3) and scenario["std"] == pytest.approx([0.2, 0.3, 0.4])
    assert len(report["candidates"]) == 2 and report["candidates"][0]["iterations"] == 3
    assert report["labels"]["true"] == [1, 2]


def test_buffers_that_are_sent_reach_the_prior_and_else_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "my_mod_c.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    prior = "BatchNormStatistics(0.1, source='batch')"
    arguments = ["audit", "--network", "my_mod_c:normed", "--image-shape", "3", "16", "16", "--train-mode"]
    arguments += ["--attack", f"GradientInversion(priors=({prior},))"]
    assert main([*arguments, "--sent-buffers", "--output", "out", *QUICK]) == 0
    assert read(tmp_path / "out")["scenario"]["threat_model"]["buffers"] == "sent"
    assert main([*arguments, "--output", "none", *QUICK]) == 2
    assert "ThreatModel(buffers='sent')" in capsys.readouterr().err


def test_a_report_s_config_runs_it_again_and_options_beside_it_win(tmp_path: Path) -> None:
    assert main(["audit", "--output", "one", "--client", "FedAvg(lr=0.02)", "--seed", "4", *PLAIN]) == 0
    assert main(["audit", "--config", "one/report.json", "--output", "two", "--quiet"]) == 0
    assert main(["audit", "--config", "one/report.json", "--output", "three", "--quiet", "--seed", "5"]) == 0
    one, two, three = (read(tmp_path / name) for name in ("one", "two", "three"))
    assert one["scores"] == two["scores"] and one["config"] == two["config"]
    assert three["scenario"]["seed"] == 5 and three["scenario"]["client"] == one["scenario"]["client"]


def test_a_factory_of_the_user_s_own_with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_mod_a.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    base = ["audit", "--network", "my_mod_a:make", "--image-shape", "3", "16", "16", *QUICK]
    assert main([*base, "--output", "out"]) == 0
    assert read(tmp_path / "out")["scenario"]["num_classes"] == 5

    module = sys.modules["my_mod_a"].make()
    torch.nn.init.zeros_(module.body[0].weight)
    torch.save(module.state_dict(), "w.pt")
    assert main([*base, "--weights", "w.pt", "--output", "zeros"]) == 0
    assert read(tmp_path / "zeros")["loss"] != read(tmp_path / "out")["loss"]

    assert main(["audit", "--config", "out/report.json", "--output", "no", "--quiet"]) == 2, "a file may not name code"
    assert main([*base, "--config", "out/report.json", "--output", "again"]) == 0
    assert read(tmp_path / "again")["scores"] == read(tmp_path / "out")["scores"]

    torch.save({"other": torch.zeros(1)}, "bad.pt")
    assert main([*base, "--weights", "bad.pt", "--output", "no"]) == 2
    assert not (tmp_path / "no").exists()


def test_a_checkpoint_of_a_zoo_network(tmp_path: Path) -> None:
    save_checkpoint("w.safetensors", networks.build("LeNetZhu", seed=9), {})
    assert main(["audit", "--weights", "w.safetensors", "--output", "a", *PLAIN]) == 0
    assert main(["audit", "--output", "b", *PLAIN]) == 0
    assert read(tmp_path / "a")["loss"] != read(tmp_path / "b")["loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "LeNetZu"], "did you mean LeNetZhu"),
        (["--attack", "geipin"], "did you mean geiping"),
        (["--client", "FedAvg(steps=2)"], "unknown argument of FedAvg 'steps'"),
        (["--defenses", "Clip"], "max_norm"),
        (["--loss", "MSE"], "CrossEntropy"),
        (["--dataset", "CIFAR1"], "did you mean CIFAR10"),
        (["--dataset", "CIFAR10", "--data-path", "nowhere"], "nowhere"),
        (["--images", "none.png"], "does not exist"),
        (["--images", "corrupt.png"], "corrupt.png"),
        (["--images", "small.png"], "small"),
        (["--images", "good.png", "--labels", "10"], "0..9"),
        (["--images", "good.png", "--labels", "1", "2"], "2 labels for 1 pictures"),
        (["--dataset", "folder", "--data-path", "empty"], "empty"),
        (["--index", "99"], "there is no 99"),
        (["--index", "-1"], "--index"),
        (["--num-images", "0"], "--num-images"),
        (["--num-classes", "0"], "at least 1"),
        (["--threads", "-1"], "at least 1"),
        (["--device", "meta"], "--device"),
        (["--attack", "GradientInversion(objective=Adam())"], "objective cannot be called"),
        (["--attack", "GradientInversion(priors=TotalVariation())"], "priors is a tuple"),
        (["--attack", "linear", "--network", "MLP", "--max-iterations", "0"], "at least one iteration"),
        (["--max-iterations", "0"], "at least one iteration"),
        (["--time-budget", "soon"], "30s"),
        (["--device", "cuda:77"], "--device"),
        (["--mean", "0.1", "0.2"], "one a channel"),
        (["--std", "0"], "positive"),
        (["--weights", "none.safetensors"], "none.safetensors"),
        (["--weights", "corrupt.png"], "corrupt.png"),
        (["--output", "good.png/out"], "good.png"),
        (["--output", "good.png"], "good.png"),
        (["--config", "none.json"], "none.json"),
        (["--config", "unknown.json"], "unknown config entry 'clint'"),
        (["--config", "typed.json"], "seed must be"),
        (["--config", "code.json"], "names code"),
        (["--network", "no_such_module:make"], "no_such_module"),
        (["--network", "my_mod_b:wrong"], "not a torch.nn.Module"),
        (["--network", "my_mod_b:make", "--image-shape", "3", "20", "20"], "cannot run on images"),
        (["--network", "resnet18", "--images", "good.png"], "224"),
        (["--network", "SRNet3"], "never defined"),
        (["--attack", "linear"], "no linear layer"),
    ],
)
def test_bad_input_is_one_clear_message_status_2_and_nothing_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    unchecked: None,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "my_mod_b.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    picture(tmp_path / "good.png")
    picture(tmp_path / "small.png", (20, 20))
    (tmp_path / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    (tmp_path / "empty").mkdir()
    (tmp_path / "unknown.json").write_text('{"clint": "FedSGD()"}')
    (tmp_path / "typed.json").write_text('{"seed": "three"}')
    (tmp_path / "code.json").write_text('{"config": {"network": "my_mod_b:make"}}')
    before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)

    output = [] if "--output" in arguments else ["--output", "out"]
    assert main(["audit", *output, *arguments]) == 2

    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("inversefed: error:") and captured.out == ""
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before


@pytest.mark.parametrize("arguments", [["audit", "--foo"], [], ["audit", "--seed", "x"], ["list", "cats"]])
def test_wrong_usage_ends_with_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_a_failure_of_the_program_itself_is_status_1(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> int:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr("inversefed.cli.audit.run_audit", broken)
    assert main(["audit"]) == 1
    assert "failed: RuntimeError: disk on fire" in capsys.readouterr().err


def test_every_restart_lost_is_status_1_with_a_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    diverging = "GradientInversion(optimizer=SGD(lr=1e38, signed=False), projections=(), schedule=Constant())"
    assert (
        main(["audit", "--attack", diverging, "--output", "out", "--max-iterations", "20", "--nulls", "0", "--quiet"])
        == 1
    )
    assert read(tmp_path / "out")["status"] == "non-finite"
    assert "NaN" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "decibels", "margin"), [("best", 112, 3), ("geiping", 22.7, 1.0)])
def test_the_audit_of_the_readme_gives_the_figures_of_the_readme(
    tmp_path: Path, attack: str, decibels: float, margin: float
) -> None:
    assert main(["audit", "--attack", attack, "--output", "out", "--quiet", "--nulls", "0"]) == 0
    report = read(tmp_path / "out")
    assert report["scores"]["peak_signal_noise_ratio"][0] == pytest.approx(decibels, abs=margin)
    assert report["baselines"]["constant"]["peak_signal_noise_ratio"][0] == pytest.approx(19.56, abs=0.01)
    assert report["baselines"]["gray"]["peak_signal_noise_ratio"][0] == pytest.approx(15.72, abs=0.01)


@pytest.mark.slow
def test_an_attack_that_was_cut_short_goes_on_to_the_same_end(tmp_path: Path) -> None:
    search = ["audit", "--attack", "geiping(max_iterations=150)", "--quiet", "--output"]
    assert main([*search, "whole"]) == 0
    assert main([*search, "cut", "--time-budget", "0.3s", "--checkpoint", "state"]) == 0
    assert main([*search, "resumed", "--resume", "state"]) == 0
    whole, cut, resumed = (read(tmp_path / name) for name in ("whole", "cut", "resumed"))
    assert cut["status"] == "stopped" and cut["scores"] != whole["scores"]
    assert resumed["status"] == "finished" and resumed["scores"] == whole["scores"]
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0


def test_a_checkpoint_of_another_audit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    search = ["audit", "--attack", "geiping(max_iterations=3)", "--nulls", "0", "--quiet", "--output"]
    assert main([*search, "one", "--checkpoint", "state"]) == 0
    assert main([*search, "two", "--resume", "state", "--seed", "1"]) == 2
    assert "checkpoint of another search" in capsys.readouterr().err and not (tmp_path / "two").exists()


def test_restarts_and_precision_change_the_search(tmp_path: Path) -> None:
    options = ["--restarts", "4", "--precision", "double", "--compile", "off", "--max-iterations", "3", "--nulls", "0"]
    assert main(["audit", "--attack", "geiping", *options, "--output", "out", "--quiet"]) == 0
    found = read(tmp_path / "out")
    assert found["attack"] == "geiping().with_settings(restarts=4, precision=Double())"
    attack = found["scenario"]["attack"]
    assert "restarts=4" in attack and "Double()" in attack and "SuccessiveHalving" in attack
    assert main(["audit", "--attack", "linear", *options, "--output", "none", "--quiet"]) == 2


def test_a_time_budget_stops_with_the_best_so_far(tmp_path: Path) -> None:
    assert (
        main(["audit", "--attack", "geiping", "--time-budget", "0.3s", "--nulls", "0", "--output", "out", "--quiet"])
        == 0
    )
    assert read(tmp_path / "out")["status"] == "stopped"


@pytest.mark.parametrize(
    "what", ["networks", "datasets", "clients", "attacks", "priors", "objectives", "defenses", "losses", "metrics"]
)
def test_list_names_what_there_is(what: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = {
        "networks": "LeNetZhu", "datasets": "CIFAR10", "clients": "FedAvg", "attacks": "geiping",
        "priors": "TotalVariation", "objectives": "Cosine", "defenses": "GaussianNoise", "losses": "BinaryCrossEntropy",
        "metrics": "peak_signal_noise_ratio",
    }  # fmt: skip
    assert any(line.split(" ")[0] == expected[what] for line in lines)


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "inversefed", *arguments], capture_output=True, text=True, check=False, **options
    )


def test_help_and_version_do_not_import_torch() -> None:
    for arguments in ("'--help'", "'audit', '--help'", "'--version'"):
        code = (
            "import sys\nfrom inversefed.cli import main\n"
            f"try: main([{arguments}])\nexcept SystemExit as e: assert e.code == 0\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "RUNS" in run("audit", "--help").stdout, "the help says that a factory runs code"
    assert run("--version").stdout.startswith(f"inversefed {inversefed.__version__}")


@pytest.mark.parametrize("command", ["audit", "gate", "inspect", "defend"])
def test_help_is_in_groups_and_says_nothing_of_empty_defaults(command: str) -> None:
    told = run(command, "--help").stdout
    titles = re.findall(r"─ ([a-z-]+) options ─", told)
    assert [each for each in ("images", "network", "client", "threat-model", "machine") if each in titles]
    assert titles.index("images") < titles.index("threat-model") < titles.index("machine")
    assert not re.search(r"\{None\}|default: (None|False|)\)|--no-no-|--no-train-mode", told)


def test_a_switch_of_a_config_file_can_be_turned_off_on_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"train_mode": True, "index": 3}))
    assert parse(["audit", "--config", str(config)]).train_mode
    again = parse(["audit", "--config", str(config), "--no-train-mode", "--index", "0"])
    assert not again.train_mode and again.index == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspekt", "--network", "LeNetZhu"], "unknown command 'inspekt'; did you mean inspect?"),
        (["audit", "--config", "nowhere.json"], "nowhere.json: No such file or directory; name a report.json"),
    ],
)
def test_a_slip_in_a_command_line_is_answered_with_what_to_write(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["audit", "--attack", "nonsense"], ["inspect", "--update", "nowhere.npz"]])
def test_a_refused_option_or_file_costs_little_more_than_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom inversefed.cli import main\n"
        f"assert main({arguments}) == 2\n"
        "late = ('torchvision', 'scipy.optimize', 'scipy.sparse', 'torchmetrics', 'skimage', 'matplotlib', 'jinja2')\n"
        "loaded = [each for each in late if each in sys.modules]\nassert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_shell_completion_is_printed() -> None:
    done = run("--tyro-print-completion", "bash")
    assert done.returncode == 0 and "--known-labels" in done.stdout


def test_ctrl_c_keeps_the_best_result_so_far(tmp_path: Path) -> None:
    asked = "audit --attack geiping --nulls 0 --time-budget 20s --output out"  # a fifth of it for the limit
    command = [sys.executable, "-u", "-m", "inversefed", *asked.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores Ctrl-C
    )
    assert process.stderr is not None
    process.stderr.readline()  # the first line of progress: the attack is under way
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert read(tmp_path / "out")["status"] == "interrupted"
    assert (tmp_path / "out/reconstruction_00.png").stat().st_size > 0
