import json
import os
import stat

import numpy
import pytest
from PIL import Image

from inversefed.errors import InputError
from inversefed.report import folder


def names(folder):
    return {entry.name for entry in folder.iterdir()}


def pictures(count):
    return {f"{name}_{index:02d}.png" for name in ("target", "reconstruction") for index in range(count)}


REPORTS = {"report.json", "report.html", "report.md"}


def test_writes_every_file_for_the_owner_only(report, tmp_path):
    before = os.umask(0)
    try:
        folder = report(2).save(tmp_path / "runs" / "one")
    finally:
        os.umask(before)
    assert folder == tmp_path / "runs" / "one"
    assert names(folder) == REPORTS | pictures(2)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in folder.iterdir()} == {0o600}
    assert names(tmp_path / "runs") == {"one"}


@pytest.mark.parametrize("mask", [0, 0o777])
def test_a_folder_that_was_open_is_closed_but_not_around_foreign_files(report, tmp_path, mask):
    for name in ("empty", "earlier", "foreign", "sticky"):
        (tmp_path / name).mkdir()
    report(1).save(tmp_path / "earlier")
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    modes = {"empty": 0o755, "earlier": 0o755, "foreign": 0o755, "sticky": 0o1777}
    for name, mode in modes.items():
        (tmp_path / name).chmod(mode)
    before = os.umask(mask)
    try:
        for name in modes:
            report(1).save(tmp_path / name, overwrite=True)
    finally:
        os.umask(before)
    found = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in modes}
    assert found == modes | {"empty": 0o700, "earlier": 0o700}
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("*/report.*")} == {0o600}


def test_files_hold_what_the_report_says(report, tmp_path):
    found = report(2)
    folder = found.save(str(tmp_path / "one"))
    assert json.loads((folder / "report.json").read_text()) == found.to_dict()
    assert (folder / "report.html").read_text() == found.to_html()
    assert (folder / "report.md").read_text() == found.to_markdown()
    for name, images in (("target", found.truth.images), ("reconstruction", found.images)):
        expected = (images[1].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        numpy.testing.assert_array_equal(numpy.asarray(Image.open(folder / f"{name}_01.png")), expected)


def test_without_a_truth_there_are_no_targets(report, tmp_path):
    folder = report(1, truth=None, permutation=None, scores={}, baselines={}).save(tmp_path / "one")
    assert names(folder) == REPORTS | {"reconstruction_00.png"}


def test_an_empty_folder_is_filled_and_a_full_one_refused(report, tmp_path):
    report(1).save(tmp_path)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    with pytest.raises(InputError, match="not empty"):
        report(2).save(tmp_path)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_overwrite_replaces_ours_and_leaves_the_rest(report, tmp_path):
    report(3).save(tmp_path)
    for foreign in ("notes.txt", "target_xx.png", "my_target_02.png", "target_02.png.bak"):
        (tmp_path / foreign).write_text("mine")
    report(1).save(tmp_path, overwrite=True)
    assert names(tmp_path) == REPORTS | pictures(1) | {
        "notes.txt",
        "target_xx.png",
        "my_target_02.png",
        "target_02.png.bak",
    }
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(json.loads((tmp_path / "report.json").read_text())["scores"]["mean_squared_error"]) == 1


def test_overwrite_replaces_a_link_and_not_what_it_points_to(report, tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "report.json").symlink_to(tmp_path / "elsewhere")
    report(1).save(folder, overwrite=True)
    assert (tmp_path / "elsewhere").read_text() == "mine" and not (folder / "report.json").is_symlink()


def test_a_file_or_a_path_below_a_file_is_refused(report, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        report(1).save(tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="cannot write to the output folder"):
        report(1).save(tmp_path / "file" / "below")
    assert names(tmp_path) == {"file"}


def test_a_failure_while_writing_leaves_nothing_behind(report, tmp_path, monkeypatch):
    def full(staging, files):
        (staging / "report.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_write", full)
    with pytest.raises(InputError, match="No space left on device; choose another one"):
        report(1).save(tmp_path / "one")
    assert names(tmp_path) == set()


def test_an_interrupt_while_overwriting_keeps_the_old_report(report, tmp_path, monkeypatch):
    report(1).save(tmp_path)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}

    def interrupted(staging, files):
        (staging / "report.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report(2).save(tmp_path, overwrite=True)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(report, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        report(1).save(tmp_path / "one")


def test_names_that_are_not_unicode_can_be_written(report, tmp_path):
    foreign = b"caf\xe9".decode("utf-8", "surrogateescape")
    folder = report(1, config={"images": foreign}).save(tmp_path / "one")
    assert json.loads((folder / "report.json").read_text())["config"]["images"] == foreign
    assert "<pre>" in (folder / "report.html").read_text()
