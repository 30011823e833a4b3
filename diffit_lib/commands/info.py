"""`diffit info`."""


def run_info(name: str) -> None:
    """Say what a preset or a weights file is, or what pictures are and what training on them takes.

    Args:
        name: preset, weights file, the name of ready-made weights, or pictures: a folder, a zip, a data set's name
    """
    from diffit_lib.tasks.info import info

    print(info(name))
