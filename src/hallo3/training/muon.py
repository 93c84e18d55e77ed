"""Muon: momentum made orthogonal (Jordan et al. 2024), in float32.

Torch's own `torch.optim.Muon` iterates in bfloat16, which most CPUs compute slower than float32.
"""

from typing import Any

import torch
from torch import Tensor

from hallo3.training.parallel import add_up, local, own_part, processes, rank, whole

# Quintic Newton-Schulz iteration: brings every singular value near 1 in five steps.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The orthogonal factor of each of `(k, m, n)`, singular values about 0.7…1.2."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.transpose(1, 2)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        square = x @ x.transpose(1, 2)
        x = a * x + torch.baddbmm(b * square, square, square, alpha=c) @ x
    return x if wide else x.transpose(1, 2)


def orthogonal_shared(batches: list[Tensor]) -> list[Tensor]:
    """`orthogonal` of each batch. Of several processes, which hold the same, each computes some and all get the sum."""
    found = []
    for number, matrices in enumerate(batches):
        rows = [row for row in range(len(matrices)) if (number + row) % processes() == rank()]
        updates = torch.zeros_like(matrices)
        if rows:
            updates[rows] = orthogonal(matrices[rows])
        found.append(updates)
    return add_up(found)


class Muon(torch.optim.Optimizer):
    """Steps of Nesterov momentum whose matrix is made orthogonal, scaled to the size of an Adam step.

    Args:
        params: Matrices, and kernels of convolutions (a matrix of outputs × all else).
        lr: As for Adam: the root mean square of a step is about 0.2 of it.
        momentum: Of the gradients' average. weight_decay: decoupled.
    """

    def __init__(self, params: Any, lr: float = 1e-2, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; matrices of one shape are made orthogonal together, and every process does its share of them."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(tuple(parameter.shape), []).append(parameter)
            matrices = [
                torch.stack([whole(self._momentum(p, group["momentum"])).flatten(1) for p in parameters])
                for parameters in shapes.values()
            ]
            for parameters, updates in zip(shapes.values(), orthogonal_shared(matrices), strict=True):
                size = 0.2 * max(updates.shape[1:]) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    part = own_part(update.view(parameter.shape), parameter)
                    local(parameter).add_(part, alpha=-group["lr"] * size)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        assert gradient is not None
        state["momentum"].lerp_(gradient, 1 - momentum)
        return torch.lerp(gradient, state["momentum"], momentum)
