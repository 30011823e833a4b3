"""`diffit encode`."""

from typing import Literal

from diffit_lib.options import parse_resolution


def run_encode(
    vae: str,
    data: str | None = None,
    out: str | None = None,
    resolution: str | None = None,
    crop: Literal["center", "long-edge", "adm"] | None = None,
    skip_bad: bool | None = None,
    memory_gb: float | None = None,
) -> None:
    """Write the latents of a data set once, for training: `train --vae VAE --data FOLDER` reads them.

    Args:
        vae: autoencoder's weights file, or the name of a ready-made one
        data: data set by name, or the path of a folder or zip; the autoencoder's own unless given
        out: folder for the latents; in the cache folder unless given
        resolution: width and height of the images, e.g. 64x48, or 64 for both; the autoencoder's own unless given
        crop: largest box; whole image on black; ImageNet's usual one; the autoencoder's own unless given
        skip_bad: leave out and count images that cannot be read, instead of stopping at the first
        memory_gb: larger data are decoded when used, not held in memory; half of the memory unless given
    """
    changes = {
        "image_size": parse_resolution(resolution),
        "crop": crop,
        "skip_bad": skip_bad,
        "memory_gb": memory_gb,
    }
    from diffit_lib.tasks.encode import encode

    folder = encode(vae, data, out, **{name: value for name, value in changes.items() if value is not None})
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"latents: {folder}, {size / 1e6:,.1f} MB")
