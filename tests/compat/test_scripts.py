"""The two scripts of 2020, run as they were run: in a shell, and in this process for the finer points."""

import csv
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inversefed.compat import scripts, session
from inversefed.zoo import pictures

ROOT = Path(__file__).parents[2]
VERBATIM = (
    "reconstruct_image.py --model ResNet20-4 --dataset CIFAR10 --trained_model --cost_fn sim --indices def "
    "--restarts 32 --save_image --target_id -1"
)
LINE = re.compile(r"Rec\. loss: +\S+ \| MSE: +\S+ \| PSNR: +\S+ \| FMSE: +\S+ \|")
SMALL = ["--model", "ConvNet8", "--max_iterations", "1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def in_a_shell(command, folder):
    script, *words = command.split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_command_of_the_readme_runs_to_its_end(cifar_root, tmp_path):
    done = in_a_shell(f"{VERBATIM} --data_path {cifar_root} --epochs 1 --max_iterations 1 --restarts 2", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(LINE.findall(done.stdout)) == 1 and "Training the model" in done.stdout
    assert (tmp_path / "models" / "ResNet20-4_CIFAR10_1.pth").is_file()
    (row,) = table(tmp_path / "tables" / "table_exp_iv.csv")
    assert (row["model"], row["trained"], row["restarts"], row["target_id"]) == ("ResNet20-4", "True", "2", "-1")
    assert row["rec_img"] == "demo_trainedResNet20-4_sim--1.png" and row["gt_img"] == "demo_ground_truth--1.png"
    assert {file.name for file in (tmp_path / "images").iterdir()} == {row["rec_img"], row["gt_img"]}
    truth = pictures.photo(pictures.photo_names()[0], (3, 32, 32))
    assert torch.allclose(pictures.read_picture(tmp_path / "images" / row["gt_img"]), truth, atol=1 / 255)


def test_an_untrained_network_on_the_demo_picture_needs_no_data(here, capsys):
    assert scripts.reconstruct_image_main(["--target_id", "-1", "--data_path", "nowhere", *SMALL]) == 0
    assert LINE.search(capsys.readouterr().out)
    assert not (here / "images").exists() and len(table(here / "tables" / "table_exp_iv.csv")) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--target_id", "2", "--label_flip"],
        ["--num_images", "2"],
        ["--accumulation", "2", "--target_id", "0"],
        ["--optim", "zhu", "--target_id", "0"],
        ["--dtype", "double", "--target_id", "0", "--deterministic"],
        ["--optimizer", "sgd", "--no-signed", "--no-boxed", "--weights", "linear", "--init", "rand"],
        ["--scoring_choice", "pixelmedian", "--restarts", "2", "--indices", "first4", "--cost_fn", "simlocal"],
    ],
)
def test_options_run(words, here, cifar_root, capsys, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    assert scripts.reconstruct_image_main([*words, "--data_path", str(cifar_root), "--save_image", *SMALL]) == 0
    (row,) = table(here / "tables" / "table_exp_iv.csv")
    assert 0 <= int(row["target_id"]) < 6 and tuple(row) == session.COLUMNS
    shape = pictures.read_picture(here / "images" / row["gt_img"]).shape
    assert shape == ((3, 32, 64) if "--num_images" in words else (3, 32, 32))


def test_a_second_run_appends_a_row(here):
    for _ in range(2):
        assert scripts.reconstruct_image_main(["--target_id", "-1", *SMALL]) == 0
    first, second = table(here / "tables" / "table_exp_iv.csv")
    assert first["model"] == second["model"] == "ConvNet8" and first["seed"] != second["seed"]


def test_a_dry_run_writes_nothing(here, capsys, cifar_root):
    words = ["--dryrun", "--save_image", "--trained_model", "--data_path", str(cifar_root), "--model", "ConvNet8"]
    assert scripts.reconstruct_image_main([*words, "--target_id", "-1", "--restarts", "9"]) == 0
    assert LINE.search(capsys.readouterr().out)
    assert [entry.name for entry in here.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cost_fn", "simm"], "did you mean sim"),
        (["--optim", "geiping"], "Known: ours, zhu"),
        (["--restarts", "0"], "1 or more"),
        (["--tv", "-1"], "0 or more"),
        (["--max_iterations", "none"], "whole number"),
        (["--dtype", "int"], "unknown dtype"),
        (["--target_id", "-2"], "-1 or more"),
        (["--model", "ConvNe"], "did you mean ConvNet"),
        (["--dataset", "CIFAR11"], "did you mean CIFAR10"),
        (["--dataset", "BSDS-SR"], "has no classes"),
        (["--num_images", "2"], "is one picture"),
        (["--model", "SRNet3"], "never defined"),
        (["--target_id", "0", "--data_path", "nowhere"], "`reconstruct_image.py --target_id -1` attacks a bundled"),
        (["--table_path", "a_file"], "cannot be used as a folder"),
        (["--image_path", "a_file/below", "--save_image"], "cannot be used as a folder"),
        (["--unsigned"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_status_2(words, says, here, capsys):
    (here / "a_file").write_text("")
    assert scripts.reconstruct_image_main(["--target_id", "-1", *SMALL, *words]) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said
    assert not list(here.rglob("*.csv")) and not list(here.rglob("*.png"))


def test_a_picture_that_is_not_there(here, cifar_root, capsys):
    assert scripts.reconstruct_image_main(["--target_id", "6", "--data_path", str(cifar_root), *SMALL]) == 2
    assert "has examples 0 to 5" in capsys.readouterr().err
    words = ["--num_images", "7", "--data_path", str(cifar_root)]
    assert scripts.reconstruct_image_main([*words, *SMALL]) == 2


def test_ctrl_c_keeps_the_best_so_far(here, monkeypatch, capsys):
    real, calls = torch.optim.Adam.step, []

    def step(*given, **named):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    assert scripts.reconstruct_image_main(["--target_id", "-1", "--model", "ConvNet8", "--save_image"]) == 130
    assert "the best so far" in capsys.readouterr().err
    assert len(table(here / "tables" / "table_exp_iv.csv")) == 1 and len(list((here / "images").iterdir())) == 2


def test_ctrl_c_before_there_is_a_result(here, monkeypatch, capsys):
    monkeypatch.setattr(session, "network_of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert scripts.reconstruct_image_main(["--target_id", "-1"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_imagenet_takes_torchvisions_networks(here, capsys):
    words = ["--dataset", "ImageNet", "--target_id", "-1", "--max_iterations", "1"]
    assert scripts.reconstruct_image_main([*words, "--model", "SqueezeNet1_1", "--dryrun"]) == 0
    assert scripts.reconstruct_image_main([*words, "--model", "ConvNet"]) == 2
    assert "unknown ImageNet network" in capsys.readouterr().err


def test_rec_mult_runs_consecutive_pictures(cifar_root, here, capsys, monkeypatch):
    words = "--num_exp 3 --target_id 1 --soft_labels --unsigned --lr 0.2 --accumulation 2 --batch_size 1 --local_lr 0.1"
    monkeypatch.setattr(sys, "argv", ["rec_mult.py", *words.split(), "--data_path", str(cifar_root), *SMALL])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "rec_mult.py"), run_name="__main__")
    assert not ended.value.code
    rows = table(here / "tables" / "table_mul_exp_iv.csv")
    assert [row["target_id"] for row in rows] == ["1", "2", "3"] and len(LINE.findall(capsys.readouterr().out)) == 3
    (summary,) = table(here / "tables" / "table_psnr_stats_iv.csv")
    psnrs = torch.tensor([float(row["psnr"]) for row in rows], dtype=torch.double)
    for name, value in {
        "mean": psnrs.mean(),
        "std": psnrs.std(correction=0),
        "min": psnrs.min(),
        "median": psnrs.median(),
        "max": psnrs.max(),
    }.items():
        assert float(summary[name]) == pytest.approx(float(value))
    assert len(list((here / "images").glob("*_ConvNet8_sim-*.png"))) == 3


def test_rec_mult_refuses_what_it_cannot(here, cifar_root, capsys):
    assert scripts.rec_mult_main(["--data_path", str(cifar_root), *SMALL]) == 2
    assert "has 6 validation pictures, and 10 from" in capsys.readouterr().err
    assert not list(here.rglob("*.csv"))
    assert scripts.rec_mult_main(["--target_id", "-1"]) == 2
    assert scripts.rec_mult_main(["--num_exp", "0"]) == 2
    assert "1 or more" in capsys.readouterr().err
