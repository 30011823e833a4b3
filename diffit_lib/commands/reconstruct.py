"""`diffit reconstruct`."""


def run_reconstruct(vae: str, data: str | None = None, out: str = "reconstructions", images: int = 32) -> None:
    """Show what an autoencoder makes of pictures: grids of input, latents and reconstructions.

    Args:
        vae: autoencoder's weights file or a latent model's, or the name of ready-made ones
        data: data set by name, the path of a folder or zip, or of latents; the autoencoder's own unless given
        out: folder for the grids
        images: how many to show
    """
    from diffit_lib.tasks.reconstruct import reconstruct

    numbers = reconstruct(vae, data, out, images=images)
    print(f"grids: {out}/", *(f"{name}={value:.4g}" for name, value in numbers.items()))
