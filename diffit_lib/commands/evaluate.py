"""`diffit evaluate`."""

from typing import Any, Literal


def run_evaluate(
    weights: str,
    data: str | None = None,
    images: int = 500,
    extractor: Literal["classifier", "inception"] | None = None,
    inception: str | None = None,
    protocol: Literal["round", "adm"] = "round",
    **settings: Any,
) -> None:
    """Draw images from weights and measure them against the data they were trained on, or against others.

    Args:
        weights: weights file, or the name of ready-made weights
        data: data set by name, or the path of a folder or zip; the weights' own unless given
        images: how many to draw, as many of each class
        extractor: what sees the images; the classifier where the data have classes, unless given
        inception: file of Inception's weights; downloaded unless given
        protocol: adm truncates to whole numbers, as the published evaluators do
    """
    import json

    from diffit_lib.tasks.evaluate import evaluate

    numbers = evaluate(
        weights, data, images=images, extractor=extractor, inception=inception, protocol=protocol, **dict(settings)
    )
    print(json.dumps(numbers, indent=2))
