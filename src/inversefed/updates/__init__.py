"""An update that comes from elsewhere: files read as data, metadata, names and shapes, and what contradicts them.

file --files--> tensors by name --split_state_dict--> parameters, buffers --update--> Observation
"""

from inversefed.updates.diagnosis import diagnose
from inversefed.updates.metadata import Metadata
from inversefed.updates.update import Update, as_observation, expected_tensors, read_update, write_update

__all__ = ["Metadata", "Update", "as_observation", "diagnose", "expected_tensors", "read_update", "write_update"]
