import json
import os

import pytest

from inversefed.errors import InputError
from inversefed.report import read
from inversefed.report.read import read_report


def test_a_report_is_read_from_its_file_or_its_folder(report, tmp_path):
    found = report(2)
    folder = found.save(tmp_path / "one")
    assert read_report(folder) == read_report(folder / "report.json") == found.to_dict()


def test_a_report_from_before_the_mark_is_known_by_its_entries(report, tmp_path):
    content = report(1).to_dict()
    del content["format"], content["schema"]
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert read_report(tmp_path) == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b'{"format": "inversefed-report", "loss": NaN}', "NaN is not a number"),
        (b'{"format": "inversefed-report", "loss": -Infinity}', "Infinity is not a number"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "no report of inversefed"),
        (b'{"scores": {}}', "no report of inversefed"),
        (b'{"loss": ' + b"9" * 100_000 + b"}", "not a number"),
        (b'{"loss": ' + b"9" * 400 + b"}", "not a number"),
        (b'{"loss": -1e999}', "-1e999 is not a number"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, content, message):
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_report(tmp_path)


def test_a_file_that_is_too_large_or_no_file_is_refused(report, tmp_path, monkeypatch):
    folder = report(1).save(tmp_path / "one")
    monkeypatch.setattr(read, "MOST_BYTES", 100)
    with pytest.raises(InputError, match="larger than 100 bytes"):
        read_report(folder)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not an ordinary file"):
        read_report(tmp_path / "pipe")
    with pytest.raises(InputError, match="no such file; name the folder"):
        read_report(tmp_path)
