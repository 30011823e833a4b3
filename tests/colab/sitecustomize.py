"""A stand-in for Colab's Python: its package is there from the start, diffit is not unless a path says so."""

import os
import sys

import google.colab  # noqa: F401

if os.environ["COLAB_LIBRARY"] == "absent":
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
    sys.path[:] = [path for path in sys.path if not os.path.isdir(os.path.join(path or ".", "diffit_lib"))]
