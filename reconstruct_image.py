"""Reconstruct a picture in a terminal, with the options of 2020 (`--help` lists them)."""

import sys

from inversefed.compat.scripts import reconstruct_image_main

if __name__ == "__main__":
    sys.exit(reconstruct_image_main())
