"""Compiling the denoiser's repeated layer, once for all of them and with a cache that the next process finds.

PyTorch's compiler makes one pass over the data of norms, modulation, rotation, activations and sums.
"""

import os
from typing import Any

import torch

from ..bundles.places import home
from ..errors import UserError

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def check_compiler(device: torch.device, alone: bool = True) -> None:
    """Raises UserError where the compiler is missing that a device needs, and for several processes on one video."""
    if not alone:
        raise UserError("--compile: several processes can't share compiled layers; leave it out, or start one process")
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(
                "--compile: needs triton, which is not here for this GPU; pip install triton, or leave it out"
            )
    elif device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise UserError("--compile: needs a C++ compiler, and none is here; install g++, or leave it out") from None


def compile_layers(denoiser: Any, **options: Any) -> None:
    """Lets the layers be compiled when they are first called: one graph, without a break, for the shapes in use.

    What is compiled is kept in the user's cache folder, unless `TORCHINDUCTOR_CACHE_DIR` names another. Results are the
    same up to rounding. options: for `torch.compile`.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # PyTorch writes its own place there, below /tmp, as soon as its compiler is imported.
    if os.environ.get(CACHE, default_cache_dir()) == default_cache_dir():
        os.environ[CACHE] = str(home() / "compiled")
    for module in denoiser.modules():
        if type(module).__name__ in denoiser._repeated_blocks:
            # The forward alone, not the call (`compile_repeated_blocks`): what diffusers hooks around it, streaming and
            # caches, can't be compiled and stays outside.
            module.forward = torch.compile(module.forward, fullgraph=True, dynamic=False, **options)
