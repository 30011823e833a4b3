"""Drive, as COLAB_DRIVE has it: granted, refused or full."""

import builtins
import errno
import io
import os
from pathlib import Path


def mount(path):
    """Ask for Drive."""
    with open("asked", "a") as file:
        file.write("asked\n")
    if os.environ["COLAB_DRIVE"] == "refused":
        raise ValueError("mount failed")
    Path(path, "MyDrive").mkdir(parents=True, exist_ok=True)
    if os.environ["COLAB_DRIVE"] == "full":
        builtins.open = io.open = full(path, io.open)
    print(f"Mounted at {path}")


def full(drive, real):
    """`open` where nothing can be written below `drive`."""

    def opened(file, mode="r", *args, **kwargs):
        if str(file).startswith(drive) and set(mode) & set("wax+"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return real(file, mode, *args, **kwargs)

    return opened
