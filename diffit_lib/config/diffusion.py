"""The denoisers and the sampling: frozen dataclasses that check themselves."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from diffit_lib.utils.errors import check, check_not_negative, check_positive, check_rising, check_types

MOST_STEPS = 100_000  # of a sampler, and timesteps of a VP process


@dataclass(frozen=True)
class EDMConfig:
    """The EDM denoiser (Karras et al. 2022, table 1)."""

    sigma_data: float | None = None  # Standard deviation of the data in [-1, 1]; null: measured on the training set.
    p_mean: float = -1.2  # Training noise: mean of ln sigma for a sigma_data of 0.5; larger images need more noise.
    p_std: float = 1.2  # Training noise: ln sigma is normal with this standard deviation.
    sigma_min: float = 0.002  # Lowest noise level of sampling, the last one before 0.
    sigma_max: float = 80.0  # Highest noise level of sampling, where it starts.

    kind = "edm"

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "sigma_data", "p_std", "sigma_min", "sigma_max")
        check(abs(self.p_mean) <= 10, f"p_mean is {self.p_mean}; give a number from -10 to 10, as -1.2")
        check_rising(self, "sigma_min", "sigma_max")

    @property
    def mean_log_sigma(self) -> float:
        """`p_mean`, shifted from a sigma_data of 0.5 to the data's, so that the signal-to-noise ratio is kept."""
        assert self.sigma_data is not None, "sigma_data is measured before a denoiser is built"
        return self.p_mean + math.log(self.sigma_data / 0.5)


@dataclass(frozen=True)
class VPConfig:
    """A denoiser trained on the noise levels of a variance-preserving process (Ho et al. 2020)."""

    prediction: Literal["eps", "v", "x0"] = "eps"  # What the network predicts: noise, velocity or clean image.
    noise_schedule: Literal["linear", "cosine"] = "linear"  # How the noise grows with time.
    timesteps: int = 1000  # T; training draws t uniformly from 0 to T - 1.
    loss: Literal["simple", "min-snr", "edm"] = "simple"  # simple: mean squared error; the others weight it by noise.
    clip: bool = False  # Keep the clean image in [-1, 1] while sampling: for pixels, never for latents.
    sigma_data: float | None = None  # Standard deviation of the data, used by loss edm only.
    sigma_min: float | None = None  # If you set sigma_min or sigma_max, sampling uses EDM's noise levels between them.
    sigma_max: float | None = None  # Highest noise level of sampling; a lower value spends fewer steps on pure noise.

    kind = "vp"

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "sigma_data", "sigma_min", "sigma_max")
        fewest = 21 if self.noise_schedule == "linear" else 2  # from 20 on down the last linear beta is 1 or more
        check(
            fewest <= self.timesteps <= MOST_STEPS,
            f"timesteps is {self.timesteps}; give {fewest} or more with the {self.noise_schedule} noise_schedule, "
            f"{MOST_STEPS:,} at most",
        )


@dataclass(frozen=True)
class FlowConfig:
    """Rectified flow (Liu et al. 2023): x_t = (1 - t) x0 + t n with t from 0 to 1, so that sigma = t / (1 - t)."""

    prediction: Literal["v", "x0"] = "v"  # What the network predicts: velocity x0 - n, or clean image.
    times: Literal["uniform", "logit-normal"] = "uniform"  # Distribution of t in training, before the shift.
    shift: float = 1.0  # Factor on every sigma, in training and sampling (Esser et al. 2024, equation 23).
    sigma_min: float | None = None  # If set, sampling uses EDM's noise levels down to this one, not even steps in t.
    sigma_max: float = 1000.0  # Highest noise level of sampling; t = 1 would be infinite.

    kind = "flow"

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "shift", "sigma_min", "sigma_max")
        check_rising(self, "sigma_min", "sigma_max")


GUIDANCE_OPTIONS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "power-cosine": ("guidance_power",),
    "interval": ("guidance_low", "guidance_high"),
}
GUIDANCE_COMMON = ("guidance_channels", "guidance_tolerance")
SAMPLER_OPTIONS: dict[str, tuple[str, ...]] = {
    "heun": ("churn",),
    "euler": ("churn",),
    "dpm++": (),
    "unipc": (),
    "ddim": (),
    "ddpm": ("eta", "variance"),
}
OPTIONS = {"sampler": SAMPLER_OPTIONS, "guidance_schedule": GUIDANCE_OPTIONS}


@dataclass(frozen=True)
class SamplingConfig:
    """How to draw images from the trained network."""

    sampler: str = "heun"  # heun, euler, dpm++ or unipc (both multi-step), ddim or ddpm.
    steps: int = 18  # Number of noise levels; heun evaluates the network twice at each but the last.
    guidance: float = 1.0  # Strength of classifier-free guidance; 1 is off.
    guidance_schedule: Literal["constant", "power-cosine", "interval"] = "constant"  # How guidance depends on noise.
    guidance_power: float = 4.0  # power-cosine: a higher power starts guidance later.
    guidance_low: float = 0.0  # interval: guidance acts above this noise level.
    guidance_high: float | None = None  # interval: guidance acts up to this noise level; null: to the highest.
    guidance_channels: int | None = None  # Guide only the first N channels; null: all.
    guidance_tolerance: float = 0.01  # Guidance this close to 1 is skipped to save time; 0: only at 1.
    churn: float = 0.0  # heun, euler: EDM's S_churn, fresh noise at each step; 0 is deterministic.
    eta: float = 1.0  # ddpm: share of fresh noise; 0 is ddim.
    variance: Literal["small", "large", "learned"] = "small"  # ddpm: variance of the noise: beta~, beta, the network's.

    def __post_init__(self) -> None:
        check_types(self)
        check(2 <= self.steps <= MOST_STEPS, f"steps is {self.steps}; give 2 or more, {MOST_STEPS:,} at most")
        check_not_negative(self, "churn", "guidance_tolerance", "guidance_low")
        check(0 <= self.eta <= 1, f"eta is {self.eta}; give a share from 0 (ddim) to 1")
        check_positive(self, "guidance_power", "guidance_channels")
        check_rising(self, "guidance_low", "guidance_high")
        check(self.sampler in SAMPLER_OPTIONS, f"sampler is {self.sampler!r}; give one of {', '.join(SAMPLER_OPTIONS)}")
        for choice, options in OPTIONS.items():
            chosen = getattr(self, choice)
            for option in sorted({name for names in options.values() for name in names} - {*options[chosen]}):
                takers = " and ".join(name for name, names in options.items() if option in names)
                check(
                    getattr(self, option) == getattr(SamplingConfig, option),
                    f"{option} is an option of {takers}; leave it out with {choice} {chosen!r}",
                )

    def change(self, **changes: Any) -> "SamplingConfig":
        """A copy with some fields changed; another sampler or schedule does not inherit the one before's options."""
        reset: dict[str, Any] = {}
        for choice, options in OPTIONS.items():
            before = getattr(self, choice)
            if changes.get(choice, before) != before:
                reset |= {option: getattr(SamplingConfig, option) for option in options[before]}
        return replace(self, **reset | changes)

    @property
    def method(self) -> str:
        """The sampler and its options, for provenance: "heun churn=7.0"."""
        return " ".join([self.sampler, *(f"{name}={value}" for name, value in self.options.items())])

    @property
    def guided(self) -> str:
        """Guidance in a few words, for provenance: "1", "4.4 power-cosine power=4", "4 channels=3"."""
        schedule = [] if self.guidance_schedule == "constant" else [self.guidance_schedule]
        options = GUIDANCE_OPTIONS[self.guidance_schedule]
        changed = (name for name in GUIDANCE_COMMON if getattr(self, name) != getattr(SamplingConfig, name))
        values = [f"{name.removeprefix('guidance_')}={getattr(self, name)}" for name in (*options, *changed)]
        return " ".join([f"{self.guidance:g}", *schedule, *values])

    @property
    def options(self) -> dict[str, Any]:
        """The options that only some samplers take, of this one."""
        return {option: getattr(self, option) for option in SAMPLER_OPTIONS[self.sampler]}
