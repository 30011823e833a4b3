"""Adam, or Muon for the matrices of a network and Adam for the rest, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

INSIDE = ("encoder.", "decoder.", "down.", "up.", "blocks.")  # not the first and last layers, nor the time token
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the linear layers and convolutions of the blocks, Adam for the rest.

    A convolution is the matrix (C_out, C_in * 3 * 3).
    """

    def __init__(self, module: nn.Module, lr: float, muon: float, fused: bool):
        inside = [layer for name, layer in module.named_modules() if any(f".{part}" in f".{name}" for part in INSIDE)]
        weights = [layer.weight for layer in inside if isinstance(layer, nn.Linear | nn.Conv2d)]
        self.matrices = {weight: laid_out(weight.detach(), like=weight) for weight in weights}  # views of them
        rest = [parameter for parameter in module.parameters() if parameter not in self.matrices]
        self.parts = (
            torch.optim.Adam(rest, lr=lr, fused=fused),
            MatrixMuon(self.matrices.values(), lr=muon),
        )
        # What a schedule, a gradient scaler and `zero_grad` see: the parameters themselves.
        super().__init__([{"params": rest, "lr": lr}, {"params": list(self.matrices), "lr": muon}], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; a parameter without a gradient is left alone."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for weight, matrix in self.matrices.items():
            matrix.grad = None if weight.grad is None else laid_out(weight.grad, like=weight)
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Those of Adam and Muon."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for part, group, state in zip(self.parts, self.param_groups, state_dict["parts"], strict=True):
            part.load_state_dict(state)
            group["lr"] = part.param_groups[0]["lr"]


class MatrixMuon(torch.optim.Optimizer):
    """Muon's step for matrices: each update is the gradient's Nesterov momentum, made orthogonal.

    It is scaled to the root mean square of Adam's updates (Liu et al. 2025). torch.optim.Muon does the same in bf16,
    which a CPU without AVX-512 emulates; that took longer there than forward and backward together.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float):
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, without a closure; a matrix without a gradient is left alone."""
        (group,) = self.param_groups
        for matrix in group["params"]:
            if matrix.grad is not None:
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonal(matrix.grad.lerp(average, MOMENTUM))
                matrix.add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """(A, B) with its singular values brought to between 0.7 and 1.2, but for those below 0.003 of its norm.

    These are five of Jordan's quintic Newton-Schulz iterations.
    """
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = (x if len(x) <= x.shape[1] else x.T) / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x if x.shape == matrix.shape else x.T).to(matrix)


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """(C_out, C_in, ...) -> (C_out, -1), the columns in the order of the memory of `like`."""
    return (tensor if like.is_contiguous() else tensor.permute(0, 2, 3, 1)).flatten(1)
