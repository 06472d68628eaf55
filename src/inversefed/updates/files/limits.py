"""Limits of what a file from a stranger may ask for.

The bounds are wide for updates of networks for pictures and small for a machine: the largest header that is parsed
takes some tens of megabytes and well under two seconds. Tensors themselves are bounded by the network that they are
for (`fitting`), and by the size of their file.
"""

__all__ = ["MAX_DIMENSIONS", "MAX_FILE", "MAX_HEADER", "MAX_NAME", "MAX_OPCODES", "MAX_RATIO", "MAX_TENSORS"]

MAX_FILE = 4 * 2**30
"""Bytes of a file."""
MAX_HEADER = 4_000_000
"""Bytes of whatever describes the tensors: a JSON header, a zip directory, a pickle."""
MAX_TENSORS = 20_000
"""Tensors in a file."""
MAX_OPCODES = 500_000
"""Instructions of a state dict's pickle, which take most of a second; a tensor takes about 40."""
MAX_DIMENSIONS = 16
"""Of one tensor."""
MAX_NAME = 512
"""Characters of a tensor's name."""
MAX_RATIO = 4
"""How many bytes one compressed byte may become."""
