"""Linear layers on CPUs by the library that multiplies faster there: the same results up to rounding."""

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 128  # of fewer, oneDNN takes longer than MKL even where it is the faster one


@cache
def onednn_is_faster() -> bool:
    """Whether float32 products are left to oneDNN: where the processor has AVX-512 and is not Intel's.

    MKL, which PyTorch asks for them, takes its AVX-512 code on Intel's processors only; elsewhere oneDNN is about twice
    as fast (`benchmarks/products.py`). By a rule, not by measuring: the same machine always gives the same bits.
    """
    able = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return able and torch.backends.mkl.is_available() and "intel" not in _maker().lower()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`: `(..., n)`, `(m, n)`, `(m,)` → `(..., m)`."""
    columns = x.shape[-1]
    plain = (
        type(weight) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    )
    suits = plain and not torch.is_grad_enabled() and x.numel() >= ROWS * columns
    if torch.compiler.is_compiling() or not suits or not onednn_is_faster():
        return F.linear(x, weight, bias)
    # As a convolution of one point over a picture of one row, channels last: nothing is moved.
    picture = x.reshape(1, 1, -1, columns).permute(0, 3, 1, 2)
    made = torch.mkldnn_convolution(picture, weight[:, :, None, None], bias, (0, 0), (1, 1), (1, 1), 1)  # type: ignore[attr-defined]
    return made.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])  # type: ignore[no-any-return]


class Linear(nn.Linear):
    """A linear layer by `product`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in_features)` → `(..., out_features)`."""
        return product(x, self.weight, self.bias)


def multiply_fast(network: nn.Module) -> None:
    """Lets the plain linear layers of a network, those of libraries too, compute by `product`."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def _maker() -> str:
    """Who made this processor, as far as the system says."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    return next((line for line in lines if line.startswith("vendor_id")), "") or platform.processor()
