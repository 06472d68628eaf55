"""Seeds of runs that stand by themselves: one for each (seed, role, number), whatever else runs.

    seed_k = the first 62 bits of SHA-256("seed/role/number")

A run draws from a generator of its own, so that run number k is the same alone, in another process, or after any
number of others, and streams of two roles or numbers have nothing in common.
"""

import hashlib

__all__ = ["seed_for"]


def seed_for(seed: int, role: str, number: int) -> int:
    """The seed of run `number` of a role, in 0 .. 2^62 - 1.

    Args:
        seed: of the audit.
        role: what the run is, such as `"null"`.
        number: which of its kind, from 0.

    >>> seed_for(0, "null", 0) == seed_for(0, "null", 1), seed_for(0, "null", 3) < 2**62
    (False, True)
    """
    digest = hashlib.sha256(f"{seed}/{role}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2
