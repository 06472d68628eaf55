"""The table of commands: each is carried out somewhere, and explained by a page that there is."""

import importlib
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from inversefed import errors
from inversefed.cli import main, options
from inversefed.cli.commands import COMMANDS, EXAMPLES, OF_ERRORS, page
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


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_is_understood(line: str) -> None:
    program, command, *rest = shlex.split(line)
    assert program == "inversefed" and type(options.parse([command, *rest])) is COMMANDS[command].options


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_help_ends_with_one_or_two_examples_and_a_page(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"] if name else ["-h"])
    assert not ended.value.code
    told = capsys.readouterr().out
    below = told[told.rindex("examples:") :].splitlines()
    assert below[-1] == f"more: {COMMANDS[name or 'audit'].page}"
    shown = [line.strip() for line in below[1:-1]]
    if name:
        assert shown == [each for each in EXAMPLES if shlex.split(each)[1] == name] and len(shown) in (1, 2)
    else:
        assert "source <(inversefed --tyro-print-completion bash)" in shown


def completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> Path:
    """The script that the command prints for a shell."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    with pytest.raises(SystemExit):
        main(["--tyro-print-completion", shell])
    script = tmp_path / "_inversefed"
    script.write_text(capsys.readouterr().out)
    return script


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("inversefed au", {"audit"}),
        ("inversefed audit --known-l", {"--known-labels"}),
        ("inversefed train --recipe a", {"adam"}),
    ],
)
def test_bash_completes_commands_options_and_choices(
    typed: str, offered: set[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    script = completion("bash", tmp_path, capsys)
    ask = f"""
    source {script}
    COMP_WORDS=({typed}) COMP_CWORD={len(typed.split()) - 1}
    function=$(complete -p inversefed | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    $function inversefed {typed.split()[-1]}
    echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc"], input=ask, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == offered and not done.stderr


def test_zsh_takes_up_the_script_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    script = completion("zsh", tmp_path, capsys)
    ask = f"fpath=({script.parent} $fpath); autoload -Uz compinit; compinit -u -D; print $_comps[inversefed]"
    ask += "; autoload +X _inversefed"
    done = subprocess.run(["zsh", "-f", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "_inversefed" and not done.stderr
