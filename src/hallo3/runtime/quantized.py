"""Weights in one byte a number, by torchao (extra `quantized`): approximate, and only what suffers it well.

Quantised are the linear layers inside the layers of denoiser, reference network and text encoder, row by row of a
weight. Norms, modulation, embeddings, the speech and face projections, the first and the last projection and the VAE
keep their numbers.
"""

import importlib.util
from typing import Any

import torch
from torch import nn

from ..errors import UserError

WEIGHTS = ("full", "int8", "fp8", "fp8-compute")
"""As they are; whole numbers; floating point of 8 bits; the same, and activations too, products computed in it."""

QUANTISED = {
    "transformer": "transformer_blocks.",
    "reference_network": "transformer_blocks.",
    "text_encoder": "encoder.block.",
}
"""The layers of each part."""

KEPT = ("modulation", "norm")
MISSING = 'torchao, which is not installed; pip install "hallo3[quantized]"'


def available() -> bool:
    """Whether torchao is installed."""
    return importlib.util.find_spec("torchao") is not None


def check_weights(weights: str, device: torch.device, number_format: torch.dtype, elsewhere: bool = False) -> None:
    """Raises UserError for weights that this machine has not the library, the hardware or the number format for.

    elsewhere: the device is of another machine, of which library and hardware are not known.
    """
    if weights not in WEIGHTS:
        raise UserError(f"--weights {weights}: there are no such weights; use auto, {', '.join(WEIGHTS)}")
    if weights == "full":
        return
    if not (elsewhere or available()):
        raise UserError(f"--weights {weights}: needs {MISSING}")
    if weights != "fp8-compute":
        return
    if not elsewhere and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise UserError(f"--weights fp8-compute: {device.type} here has no 8-bit products (Ada, Hopper do); use fp8")
    if number_format != torch.bfloat16:
        raise UserError("--weights fp8-compute: goes with --dtype bfloat16 only; use that, or --weights fp8")


def quantize(part: str, network: nn.Module, weights: str) -> nn.Module:
    """Quantises what can be of a part, in place, and returns it; parts that keep their numbers are left alone.

    part: its name in the bundle. weights: one of `WEIGHTS`.
    """
    if weights == "full" or part not in QUANTISED:
        return network
    from torchao.quantization import quantize_

    def chosen(module: nn.Module, name: str) -> bool:
        inside = name.startswith(QUANTISED[part])
        return isinstance(module, nn.Linear) and inside and not any(word in name for word in KEPT)

    quantize_(network, _config(weights), chosen)
    return network


def _config(weights: str) -> Any:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        PerRow,
    )

    # Compiler settings are not theirs to change.
    if weights == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    if weights == "fp8":
        return Float8WeightOnlyConfig(set_inductor_config=False)
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)
