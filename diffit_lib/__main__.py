"""`python -m diffit_lib` is `diffit`."""

import sys

from diffit_lib.cli.main import main

sys.exit(main())
