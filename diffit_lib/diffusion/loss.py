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
    """lambda(sigma) || D(x0 + sigma noise; sigma) - x0 ||^2 of each image, mean over pixels and channels: (B,).

    A learned variance adds its bound in bits; the bound's gradient reaches only the variance (Nichol and Dhariwal
    2021, section 3.1).
    """
    noisy = images + expand_like(sigma, images) * noise
    denoised, v = denoiser.with_variance(noisy, sigma, class_label, augment_label)
    error = denoised - images
    loss = denoiser.weight(sigma) * error.square().flatten(1).mean(1)
    return loss if v is None else loss + denoiser.bound(images, error.detach(), v, sigma)
