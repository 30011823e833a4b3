"""`python -m diffit_lib` is `diffit`."""

import sys

from diffit_lib.cli import main

sys.exit(main())
