"""`python -m hallo3` is the command `hallo3`."""

import sys

from .cli.app import main

sys.exit(main())
