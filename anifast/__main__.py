"""`python -m anifast` is the command `anifast`."""

import sys

from anifast.cli import main

sys.exit(main())
