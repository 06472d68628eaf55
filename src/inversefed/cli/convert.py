"""`inversefed convert`: an update from one format to another, with what it says of itself."""

from inversefed.cli.options import Convert
from inversefed.errors import InputError
from inversefed.specs.load_update import stated
from inversefed.updates.update import read_update, write_update

__all__ = ["run_convert"]


def run_convert(options: Convert) -> int:
    """Read, write, say what was written."""
    source, target = options.source.expanduser(), options.target.expanduser()
    if target.exists() and not options.overwrite:
        raise InputError(f"{target} exists; name another file, or give --overwrite")
    update = read_update(source, stated=stated(options))
    write_update(target, update)
    if not options.quiet:
        known = ", ".join(f"{name}={value}" for name, value in update.metadata.given().items())
        print(f"{len(update.tensors)} tensors, {known or 'no metadata'}: {target}")
    return 0
