"""The command line: one file per command, thin: parse, call, show."""

import sys

from .app import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
