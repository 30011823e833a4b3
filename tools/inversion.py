"""Prints the table of docs/editing.md: how well test digits come back from the noise that inversion finds for them."""

import numpy as np

from diffit_lib.data.datasets import load_data
from diffit_lib.sampling.pipeline import load


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images, in dB."""
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def main() -> None:
    """Print one row for each model and sampler, one column for each number of steps."""
    test = load_data("digits").test.take(range(32), "test")
    images, labels, steps = test.images.movedim(1, -1).numpy(), test.labels.tolist(), (18, 50, 100)
    print("| weights | sampler |", " | ".join(f"{count} steps" for count in steps), "|\n|---|---|---|---|---|")
    for name in ("digits", "latent-digits"):
        pipe = load(name, device="cpu")
        known = pipe.decode(pipe.space.encode(test.images))  # what the autoencoder makes of them; pixels stay
        for sampler in ("heun", "dpm++", "ddim"):
            cells = []
            for count in steps:
                settings = {"sampler": sampler, "steps": count, "guidance": 1.0}
                noise = pipe.invert(images, labels, **settings)
                cells.append(f"{psnr(pipe(range(32), labels, noise=noise, **settings), known):.1f}")
            print(f"| `{name}` | `{sampler}` |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
