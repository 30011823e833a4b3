"""`diffit evaluate`."""

from typing import Any, Literal


def run_evaluate(
    what: str,
    data: str | None = None,
    images: int | None = None,
    extractor: Literal["classifier", "inception"] | None = None,
    inception: str | None = None,
    protocol: Literal["round", "adm"] = "round",
    batch_size: int = 100,
    out: str | None = None,
    save_statistics: str | None = None,
    **settings: Any,
) -> None:
    """Measure what weights draw, or given images, against their data, others, or published statistics.

    Args:
        what: weights file, or the name of ready-made weights; or images: a folder, a zip, an npz of arr_0
        data: data set by name, path of a folder or zip, or npz of images or of statistics (mu, sigma); the weights' own
            unless given
        images: how many to draw, as many of each class (500), or how many of the given ones to take (all)
        extractor: what sees the images; the classifier where the data have classes, unless given
        inception: file of Inception's weights; downloaded unless given
        protocol: adm truncates to whole numbers, as the published evaluators do
        batch_size: images drawn at once
        out: JSON file to which the numbers are appended; of several settings also a table and a plot beside it
        save_statistics: npz file for Inception's statistics of the data, as others read them
    """
    from diffit_lib.tasks.evaluate import combinations, evaluate_each
    from diffit_lib.tasks.results import read_results, record, table

    if out is not None:
        read_results(out)  # what cannot be appended to is told before anything is drawn
    numbers = evaluate_each(
        what,
        data,
        images=images,
        extractor=extractor,
        inception=inception,
        protocol=protocol,
        batch_size=batch_size,
        save_statistics=save_statistics,
        **dict(settings),
    )
    each = combinations(settings)
    if numbers:
        print(table(each, numbers))
    if numbers and out is not None:
        record(out, what, each, numbers)
