"""The earlier home of `inversefed.updates`, which notebooks and audit scripts in use import from."""

from inversefed.updates import Metadata, Update, as_observation, expected_tensors, read_update, write_update

__all__ = ["Metadata", "Update", "as_observation", "expected_tensors", "read_update", "write_update"]
