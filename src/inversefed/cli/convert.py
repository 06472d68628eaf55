"""`inversefed convert`: an update from one format to another, with what it says of itself."""

from dataclasses import fields

from inversefed.cli.options import Convert
from inversefed.errors import InputError
from inversefed.fl.updates import Metadata, read_update, write_update

__all__ = ["run_convert"]


def run_convert(options: Convert) -> int:
    """Read, write, say what was written."""
    source, target = options.source.expanduser(), options.target.expanduser()
    if target.exists() and not options.overwrite:
        raise InputError(f"{target} exists; name another file, or give --overwrite")
    stated = Metadata(**{each.name: getattr(options, each.name) for each in fields(Metadata)})
    update = read_update(source, stated=stated)
    write_update(target, update)
    if not options.quiet:
        known = ", ".join(f"{name}={value}" for name, value in update.metadata.given().items())
        print(f"{len(update.tensors)} tensors, {known or 'no metadata'}: {target}")
    return 0
