"""`diffit info`."""


def run_info(name: str) -> None:
    """Say what a preset or a weights file is, or what pictures are and what training on them takes.

    Args:
        name: preset, weights file, the name of ready-made weights, or pictures: a folder, a zip, a data set's name
    """
    from diffit_lib.tasks.describe_data import are_pictures, describe_data
    from diffit_lib.tasks.info import info

    told = [] if are_pictures(name) else [info(name)]
    if not told or name == "digits":  # a preset and data that need no download
        told.append(describe_data(name))
    print("\n".join(told))
