"""The command line: the only code that prints, parses text, picks a device and touches the user's files.

`--help` and wrong usage are answered without importing torch; a command imports what it needs.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from inversefed.cli.commands import COMMANDS, after_help, page
from inversefed.cli.options import Command, parse
from inversefed.errors import InversefedError, unknown_name

__all__ = ["main"]

SUCCESS, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: as typed after `inversefed`; `None` for those of the process.

    Returns:
        0 for success, 1 for a failure, 2 for wrong usage or input, 3 above a gate's limit, 130 after Ctrl-C.
    """
    verbose = False
    # Read by OpenMP when torch is imported: threads that spin while they wait bring a busy machine to a standstill.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        options = _read(typed)
        verbose = getattr(options, "verbose", False)
        logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
        return _run(options)
    except InversefedError as error:
        return _say(f"error: {error}\nmore: {page(error, typed)}", WRONG, verbose)
    except KeyboardInterrupt:
        return _say("interrupted before there was a result to keep; nothing was written", INTERRUPTED, verbose=False)
    except BrokenPipeError:
        return FAILED
    except Exception as error:  # the last door: a traceback helps only who asked for it
        hint = "" if verbose else " (--verbose shows where)"
        return _say(f"failed: {type(error).__name__}: {error}{hint}", FAILED, verbose)


def _read(typed: Sequence[str]) -> Command:
    if typed and not typed[0].startswith("-") and typed[0] not in COMMANDS:
        raise unknown_name("command", typed[0], COMMANDS)
    try:
        return parse(typed)
    except SystemExit as ended:
        if not ended.code and {"-h", "--help"} & {*typed}:
            print(after_help(typed))
        raise


def _run(options: Command) -> int:
    command = next(each for each in COMMANDS.values() if each.options is type(options))
    return int(getattr(import_module(f"inversefed.cli.{command.module}"), command.function)(options))


def _say(message: str, status: int, verbose: bool) -> int:
    if verbose:
        logging.getLogger("inversefed").exception("the error above came from here")
    print(f"inversefed: {message}", file=sys.stderr)
    return status
