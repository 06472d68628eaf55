"""Reconstruct several pictures in a terminal, one after the other, with the options of 2020 (`--help` lists them)."""

import sys

from inversefed.compat.scripts import rec_mult_main

if __name__ == "__main__":
    sys.exit(rec_mult_main())
