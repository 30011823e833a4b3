"""The one exception a user sees."""


class DiffitError(Exception):
    """A mistake that the user can mend: one line with the thing, its value and the remedy.

    The command line prints that line and exits with 2; in a notebook it stands last, below the traceback.
    """
