"""Every report keeps to the schema that is published with the package."""

import json
import math
from dataclasses import fields
from importlib.resources import files

import pytest
import torch

from inversefed.cli import main
from inversefed.evaluation.verdict import Figures, Verdict
from inversefed.report.model import SCHEMA
from inversefed.types import Status

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is in the test group")

NO_TRUTH = {"truth": None, "permutation": None, "scores": {}, "baselines": {}}


@pytest.fixture(scope="module")
def schema() -> dict:
    file = files("inversefed.report") / "schema" / "report.schema.json"
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def validator(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def finite(text: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("status", list(Status))
@pytest.mark.parametrize(
    "fields",
    [
        {},
        NO_TRUTH,
        {
            "verdict": Verdict(
                True, "Leaked.", "Scope.", Figures(p_value=math.nan, margins=torch.tensor([1.0, math.inf]))
            )
        },
        {"verdict": Verdict(False, "Not.", "Scope."), "config": {}, "scenario": {"x": math.inf}, "findings": ()},
        {"seconds": 0.0, "noise": 1e30},
    ],
)
def test_every_report_is_valid_and_finite(report, validator, fields, status):
    validator.validate(finite(report(2, status=status, **fields).to_json()))


def test_an_audit_from_the_shell_is_valid_and_so_is_every_entry_described(tmp_path, validator, schema):
    assert main(["audit", "--output", str(tmp_path / "one"), "--quiet", "--max-iterations", "2"]) == 0
    content = finite((tmp_path / "one" / "report.json").read_text())
    validator.validate(content)
    assert content.keys() <= schema["properties"].keys() and schema["properties"]["schema"]["const"] == SCHEMA


@pytest.mark.parametrize(
    "entries",
    [
        {"format": "another"},
        {"schema": 2},
        {"status": "fine"},
        {"scores": {"x": [True]}},
        {"verdict": {"leaked": "no", "sentence": "", "scope": "", "figures": {}}},
        {"findings": [{"code": "x"}]},
        {"seconds": None},
    ],
)
def test_what_is_no_report_is_not_valid(report, validator, entries):
    assert not validator.is_valid(report(1).to_dict() | entries)


def test_figures_of_a_verdict_have_their_names_in_json_and_each_is_described(report):
    whole = {"identified": 0.5, "candidates": 4, "identified_by_chance": 0.25}
    whole |= {"records_asked": 2, "records_called": 1, "records_p_value": 0.5}
    found = report(1, verdict=Verdict(True, "Leaked.", "Scope.", Figures(**whole))).to_dict()["verdict"]["figures"]
    assert list(found) == [each.name for each in fields(Figures)]
    assert all(f"        {name}: " in Figures.__doc__ for name in found)
    bare = report(1, verdict=Verdict(True, "Leaked.", "Scope.")).to_dict()["verdict"]["figures"]
    assert found.keys() - bare.keys() == whole.keys() and all(found[name] == whole[name] for name in whole)
