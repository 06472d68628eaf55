"""`python -m inversefed`: the same as the `inversefed` command."""

import sys

from inversefed.cli import main

if __name__ == "__main__":
    sys.exit(main())
