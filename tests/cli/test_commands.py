"""The table of commands: each is carried out somewhere, and explained by a page that there is."""

import importlib
from pathlib import Path
from typing import get_args

import pytest

from inversefed import errors
from inversefed.cli import main, options
from inversefed.cli.commands import COMMANDS, OF_ERRORS, page
from inversefed.errors import ConfigError, InversefedError, UnsafeFileError

ROOT = Path(__file__).parents[2]


def test_every_command_is_in_the_table_and_is_carried_out() -> None:
    assert {each.options for each in COMMANDS.values()} == set(get_args(options.Command))
    for command in COMMANDS.values():
        assert callable(getattr(importlib.import_module(f"inversefed.cli.{command.module}"), command.function))


@pytest.mark.parametrize("file", sorted({*OF_ERRORS.values(), *(each.page for each in COMMANDS.values())}))
def test_every_page_that_an_error_leads_to_is_there(file: str) -> None:
    assert (ROOT / file).is_file()


@pytest.mark.parametrize("name", sorted({*errors.__all__} - {"shown", "unknown_name"}))
def test_every_kind_of_error_has_a_page_in_every_command(name: str) -> None:
    kind: type[InversefedError] = getattr(errors, name)
    for command, known in COMMANDS.items():
        assert page(kind("what came"), [command]) in {known.page, *OF_ERRORS.values()}
    assert (ROOT / page(kind("what came"), [])).is_file()


def test_a_kind_of_its_own_leads_to_its_page_and_another_to_that_of_the_command() -> None:
    class Refused(UnsafeFileError):
        """A kind below one that has a page."""

    assert page(Refused("a pickle"), ["train"]) == OF_ERRORS[UnsafeFileError]
    assert page(ConfigError("no such name"), ["train", "--network", "x"]) == COMMANDS["train"].page


def test_an_error_is_printed_with_its_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["gate", str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("inversefed: error: ") and told[-1] == f"more: {COMMANDS['gate'].page}"
    (tmp_path / "config.json").write_text('{"image": 3}')
    assert main(["audit", "--config", str(tmp_path / "config.json")]) == 2  # ended before there were options
    assert capsys.readouterr().err.splitlines()[-1] == f"more: {COMMANDS['audit'].page}"
