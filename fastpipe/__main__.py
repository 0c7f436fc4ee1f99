"""``python -m fastpipe`` is the command ``fastpipe``."""

import sys

from fastpipe.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
