"""`diffit demo`."""


def run_demo(run: str = "runs/demo") -> None:
    """Train DiffiT on real handwritten digits, in minutes on a CPU, and show what it draws.

    Args:
        run: folder for weights, pictures and report.json
    """
    from diffit_lib.tasks.demo import demo, table

    print(table(demo(run)))
    print(f"  pictures: {run}/samples.png, {run}/denoising.png, {run}/loss.png; weights: {run}/weights.safetensors")
