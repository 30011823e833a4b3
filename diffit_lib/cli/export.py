"""`export`: weights for other programs."""

from typing import Literal


def run_export(weights: str, folder: str, to: Literal["diffusers"] = "diffusers", vae: str | None = None) -> None:
    """Write weights as a folder that another program opens: DiT for diffusers' DiTPipeline, DiffiT with its file.

    Args:
        weights: Weights file, run folder, or the name of pretrained weights; of a latent model with denoiser vp.
        folder: Folder to write; it must be empty or not be there.
        to: The other program.
        vae: File of a published autoencoder, by default downloaded.
    """
    from diffit_lib.checkpoints.export import export

    print(f"{to}: {export(weights, folder, vae)}")
