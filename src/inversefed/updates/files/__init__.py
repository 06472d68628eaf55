"""Files of tensors from strangers: safetensors, npz, and state dicts of torch, read without trust.

    file -> opened -> Layout -> fitted to the network -> tensors

No reader runs, imports or unpickles anything. What a file describes is read first, in a few megabytes; what does not
fit is refused there.
"""

from inversefed.updates.files.arrays import Content, read_tensors
from inversefed.updates.files.writing import write_tensors

__all__ = ["Content", "read_tensors", "write_tensors"]
