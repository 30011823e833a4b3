"""`diffit info`."""


def run_info(name: str) -> None:
    """Say what a preset or a weights file is.

    Args:
        name: preset, weights file, or the name of ready-made weights
    """
    from diffit_lib.tasks.info import info

    print(info(name))
