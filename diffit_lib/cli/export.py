"""`export` and `push`: weights for other programs, and for the Hugging Face hub."""

from dataclasses import replace
from typing import Literal

from diffit_lib.utils.errors import check


def run_export(
    weights: str, folder: str, to: Literal["diffusers"] = "diffusers", vae: str | None = None, steps: int = 50
) -> None:
    """Write weights as a folder that another program opens: DiT for diffusers' DiTPipeline, DiffiT with its file.

    Args:
        weights: Weights file, run folder, or the name of pretrained weights; of a latent model with denoiser vp.
        folder: Folder to write; it must be empty or not be there.
        to: The other program.
        vae: File of a published autoencoder, by default downloaded.
        steps: Sampling steps, 64 at most, at which a DiT draws the same picture there; a DiffiT does at any number.
    """
    from diffit_lib.checkpoints.export import export

    print(f"{to}: {export(weights, folder, vae, steps)}")


def run_push(
    weights: str, repo: str, dry_run: str | None = None, private: bool = False, numbers: str | None = None
) -> None:
    """Upload weights to the Hugging Face hub, with a model card, samples, curves and a small Gradio app.

    Args:
        weights: Weights file, run folder, or the name of pretrained weights.
        repo: Repository, USER/NAME; made if it is not there.
        dry_run: Write the files into this new folder, and upload nothing.
        private: Make a repository that only you see.
        numbers: JSON file of `diffit evaluate --out`, for the card; by default the numbers in the weights file.
    """
    from diffit_lib.evaluation.provenance import read_results
    from diffit_lib.sampling.pipeline import load
    from diffit_lib.utils.tensors import digest

    pipe = load(weights)
    if numbers is not None:
        checksum = digest(pipe.denoiser.state_dict())
        found = [entry for entry in read_results(numbers) if entry["stamp"].get("weights_hash") == checksum]
        check(found != [], f"{numbers} has no numbers of {weights} ({checksum}); measure by --out {numbers}")
        pipe.card = replace(pipe.card, numbers=found[-1])
    print(f"{repo}: {pipe.push_to_hub(repo, private=private, dry_run=dry_run)}")
