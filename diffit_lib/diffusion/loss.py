"""The training loss."""

from torch import Tensor

from diffit_lib.diffusion.denoiser import Preconditioned
from diffit_lib.utils.tensors import expand_like


def denoising_loss(
    denoiser: Preconditioned,
    images: Tensor,
    sigma: Tensor,
    noise: Tensor,
    class_label: Tensor | None = None,
    augment_label: Tensor | None = None,
) -> Tensor:
    """lambda(sigma) || D(x0 + sigma noise; sigma) - x0 ||^2 for each image, mean over its pixels: (B,).

    A learned variance adds its bound, in bits and unscaled, whose gradient reaches the variance alone (Nichol and
    Dhariwal 2021, section 3.1).
    """
    noisy = images + expand_like(sigma, images) * noise
    denoised, v = denoiser.with_variance(noisy, sigma, class_label, augment_label)
    error = denoised - images
    loss = denoiser.weight(sigma) * error.square().flatten(1).mean(1)
    return loss if v is None else loss + denoiser.bound(images, error.detach(), v, sigma)
