"""``python -m gendd``."""

import sys

from gendd.cli import main

sys.exit(main())
