"""Conventions for tensors: value ranges, one seed for each image, dtypes and devices; and the memory there is.

Inside the library an image is float, (B, C, H, W), in [-1, 1]; on disk and in the public API it is uint8.
"""

import ctypes
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1], any shape."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1, 1] -> uint8 in 0..255, any shape; rounded, then clamped."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def expand_like(values: Tensor, images: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to broadcast over `images` (B, C, H, W)."""
    return values.view(-1, *[1] * (images.ndim - 1))


def unpatchify(tokens: Tensor, patch_size: int) -> Tensor:
    """(B, h, w, p p C), each token a patch in row-major order, its channel fastest -> images (B, C, h p, w p)."""
    batch, rows, columns, _ = tokens.shape
    patches = tokens.view(batch, rows, columns, patch_size, patch_size, -1).permute(0, 5, 1, 3, 2, 4)
    return patches.reshape(batch, -1, rows * patch_size, columns * patch_size)


def state_dtype(device: torch.device) -> torch.dtype:
    """The dtype of a sampler's state: float64 if the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a key, the same on every machine and in every process."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def digest(tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of a SHA-256 over names, dtypes, shapes and values, the same on every device."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()[:16]


def seeded_generator(*key: int | str) -> torch.Generator:
    """A new CPU generator, seeded by this key."""
    return torch.Generator().manual_seed(derive_seed(*key))


class SeededNoise:
    """Standard normal noise with one generator for each image.

    Each call returns the next float32 (B, C, H, W), drawn on the CPU. Row k depends on `seeds[k]` and the number of
    earlier calls, never on the rest of the batch.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int]):
        self.shape = tuple(shape)
        self.generators = [seeded_generator("image", seed) for seed in seeds]

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])


def best_precision(device: torch.device, asked: str = "auto") -> str:
    """The precision that is asked for; "auto" is the device's fast mixed one by Lightning's name, or "32-true"."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"


def bf16_by_onednn() -> bool:
    """Whether oneDNN multiplies in bf16 on this CPU, which takes AVX-512 on x86."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context that runs a network in `precision` ("32-true", "bf16-mixed" or "16-mixed")."""
    dtype = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class _Unfilled(TorchFunctionMode):
    """Leaves out what on the "meta" device imports torch's compiler, two seconds for nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fillers = (nn.init.normal_, Tensor.erfinv_, Tensor.clamp_)  # the last two: nn.init.trunc_normal_ of torch 2.8
        filled: Any = args[0] if args else (kwargs or {}).get("tensor")
        return filled if func in fillers and filled.is_meta else func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules built in this context have shapes, but take no memory and draw no random numbers."""
    with torch.device("meta"), _Unfilled():
        yield


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Run on this many CPU threads; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def best_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _truncate(images: Tensor) -> Tensor:
    """float in [-1, 1] -> uint8, rounded towards 0."""
    return ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8)


PROTOCOLS = {"round": to_uint8, "adm": _truncate}  # from float to uint8; "adm" as the published evaluators do


def device_name(device: torch.device) -> str:
    """The GPU's name, or the kind of device and the number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


def total_memory(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process and its siblings may take: the machine's, or a container's or batch job's if fewer.

    Limits of a cgroup (v2: memory.max, v1: memory.limit_in_bytes) hold for all groups inside it.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, kinds, group = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if kinds else (root, "memory.max")
        inner = top / group.strip("/")  # a container sees its own group at the top, whatever the line says
        for file in (folder / name for folder in (inner, *inner.parents) if folder.is_relative_to(top)):
            if file.is_file() and (text := file.read_text().strip()).isdecimal():  # else "max"
                limits.append(int(text))
    return min(limits)


def reuse_freed_memory() -> None:
    """Let glibc keep the large blocks that this process frees; nothing where there is no glibc.

    It gives them back to the system otherwise, and a training step on a CPU spends a tenth of its time getting new
    ones.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
            libc.mallopt(parameter, 2**31 - 1)


class Budget:
    """An amount that threads share: each waits for what it takes. One that wants more than all has it alone."""

    def __init__(self, total: int):
        self.total = self.free = total
        self.changed = Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Hold this much."""
        amount = min(amount, self.total)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= amount)
            self.free -= amount
        try:
            yield
        finally:
            with self.changed:
                self.free += amount
                self.changed.notify_all()
