"""``python -m gendd``."""

import sys

from gendd.cli import main

if __name__ == "__main__":
    sys.exit(main())
