import json
import os
import time

import pytest

from inversefed.errors import InputError
from inversefed.report.purge import find, remove


def everything(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def purge(*paths, **options):
    found = find(paths, **options)
    for leftover in found:
        remove(leftover)
    return found


def test_runs_go_with_every_file_of_theirs_and_nothing_else(report, tmp_path):
    for name in ("a", "deeper/b"):
        report(2).save(tmp_path / "runs" / name)
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    (tmp_path / "runs" / "a" / "notes.txt").write_text("mine")
    (tmp_path / "runs" / "a" / "target_00.png.bak").write_text("mine")
    (tmp_path / "runs" / "a" / "mine").mkdir()
    found = purge(tmp_path / "runs")
    assert [leftover.path.name for leftover in found] == ["a", "b"]
    assert found[0].names[-1] == "report.json"
    left = {"runs", "runs/notes.txt", "runs/a", "runs/a/notes.txt", "runs/a/target_00.png.bak", "runs/a/mine"}
    assert everything(tmp_path) == left | {"runs/deeper"}


def test_what_only_looks_like_a_run_stays(report, tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("target_00.png", "reconstruction_00.png", "report.html"):
        (tmp_path / "pictures" / name).write_text("mine")
    (tmp_path / "other").mkdir()
    for text in ("{}", "{", "[]", json.dumps({"format": "another-report"})):
        (tmp_path / "other" / "report.json").write_text(text)
        assert purge(tmp_path) == ()
    assert len(everything(tmp_path)) == 6


def test_links_are_neither_followed_nor_trusted(report, tmp_path):
    elsewhere = report(1).save(tmp_path / "elsewhere" / "one")
    before = everything(tmp_path / "elsewhere")
    runs = tmp_path / "runs"
    (runs / "linked").mkdir(parents=True)
    (runs / "linked" / "report.json").symlink_to(elsewhere / "report.json")
    (runs / "folder").symlink_to(elsewhere)
    assert purge(runs) == ()
    with pytest.raises(InputError, match="is a link"):
        find([runs / "folder"])
    one = report(1).save(runs / "one")
    (one / "target_00.png").unlink()
    (one / "target_00.png").symlink_to(elsewhere / "target_00.png")
    assert len(purge(runs)) == 1 and not one.exists()
    assert everything(tmp_path / "elsewhere") == before


def test_a_folder_that_became_a_link_after_it_was_listed_is_refused(report, tmp_path):
    elsewhere = report(1).save(tmp_path / "elsewhere")
    one = report(1).save(tmp_path / "runs" / "one")
    (leftover,) = find([one])
    one.rename(tmp_path / "moved")
    one.symlink_to(elsewhere)
    with pytest.raises(InputError, match="cannot remove"):
        remove(leftover)
    assert (elsewhere / "report.json").is_file()


def test_what_a_killed_audit_left_goes_too(tmp_path):
    (tmp_path / ".report.ab12_xyz").mkdir()
    (tmp_path / ".report.ab12_xyz" / "target_00.png").write_bytes(b"pixels")
    (tmp_path / ".report.mine").mkdir()
    (tmp_path / ".report.mine" / "notes.txt").write_text("mine")
    purge(tmp_path)
    assert everything(tmp_path) == {".report.mine", ".report.mine/notes.txt"}


def test_single_files_are_checkpoints_or_refused(report, tmp_path):
    state, notes = tmp_path / "state", tmp_path / "notes"
    state.write_text("state")
    notes.write_text("mine")
    with pytest.raises(InputError, match="not written by an audit"):
        find([state])
    with pytest.raises(InputError, match="does not exist"):
        find([tmp_path / "nowhere"])
    (leftover,) = find([tmp_path, state], is_checkpoint=lambda path: path.read_text() == "state")
    assert leftover.path == state
    remove(leftover)
    assert everything(tmp_path) == {"notes"}


def test_the_age_is_that_of_the_newest_file(report, tmp_path):
    folder = report(1).save(tmp_path / "one")
    long_ago = time.time() - 10**6
    for file in folder.iterdir():
        os.utime(file, (long_ago, long_ago))
    assert find([folder])[0].written == pytest.approx(long_ago)
    os.utime(folder / "report.md")
    assert find([folder])[0].written == pytest.approx(time.time(), abs=600)
