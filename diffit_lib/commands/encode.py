"""`diffit encode`."""


def run_encode(vae: str, data: str | None = None, out: str | None = None) -> None:
    """Write the latents of a data set once, for training: `train --vae VAE --data FOLDER` reads them.

    Args:
        vae: autoencoder's weights file, or the name of a ready-made one
        data: data set by name, or the path of a folder or zip; the autoencoder's own unless given
        out: folder for the latents; in the cache folder unless given
    """
    from diffit_lib.tasks.encode import encode

    folder = encode(vae, data, out)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    print(f"latents: {folder}, {size / 1e6:,.1f} MB")
