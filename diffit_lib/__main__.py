"""`python -m diffit_lib` is `diffit`."""

import sys


def run() -> int:
    """`main`; Ctrl-C needs no words while it is imported either."""
    try:
        from diffit_lib.cli.main import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(run())
