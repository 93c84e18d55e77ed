"""8-bit weights: what is quantised, how far results go from exact ones, and that every strategy gives the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from live_memory import peak_of
from test_plan import SETTINGS, SMALL, case, small
from test_strategies import ELSEWHERE, frames_of
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import tiny
from hallo3.animation import load
from hallo3.bundles.sizes import LAYERS, BundleSizes
from hallo3.errors import UserError
from hallo3.networks import ReferenceNetwork
from hallo3.runtime.estimates import Sizes
from hallo3.runtime.quantized import QUANTISED, quantize
from hallo3.runtime.strategies import Staged, Streamed

pytest.importorskip("torchao")

# Relative to the exact output of a random network, float32; what was measured, rounded up.
RECORDED = {"int8": 7.0e-4, "fp8": 2.2e-3}


def is_quantised(parameter: torch.Tensor) -> bool:
    return is_traceable_wrapper_subclass(parameter)


@pytest.mark.parametrize("weights", ["int8", "fp8"])
@torch.no_grad()
def test_the_difference_is_the_recorded_one(weights: str) -> None:
    torch.manual_seed(0)
    denoiser, inputs, given = case(torch.float32)
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.1)
    exact = denoiser(*inputs, conditions=denoiser.conditions(**given))
    quantize("transformer", denoiser, weights)
    conditions = denoiser.conditions(**given)
    close = denoiser(*inputs, conditions=conditions)
    difference = float((close - exact).norm() / exact.norm())
    assert RECORDED[weights] / 3 < difference <= RECORDED[weights]
    measured = peak_of(lambda: denoiser(*inputs, conditions=conditions))
    assert small("cpu").denoising() == pytest.approx(measured, rel=0.15)


def test_what_is_quantised_and_what_stays() -> None:
    for name, network in tiny.components().items():
        if not isinstance(network, nn.Module):
            continue
        quantize(name, network, "int8")
        found = {key.removesuffix(".weight") for key, x in network.named_parameters() if is_quantised(x)}
        linear = {key for key, module in network.named_modules() if isinstance(module, nn.Linear)}
        layers = {key for key in linear if name in QUANTISED and key.startswith(QUANTISED[name])}
        assert found == {key for key in layers if "modulation" not in key}, name
        assert found or name not in QUANTISED


@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_every_strategy_gives_the_same(weights: str, tiny_bundle: Path) -> None:
    exact = frames_of(load(str(tiny_bundle), device="cpu", strategy="resident"))
    resident = frames_of(load(str(tiny_bundle), device="cpu", strategy="resident", weights=weights))
    assert not np.array_equal(exact, resident)
    assert np.abs(exact.astype(int) - resident).mean() < 2
    for strategy in (Staged, Streamed):
        pipeline = load(str(tiny_bundle), device="cpu", strategy="staged", weights=weights)
        assert pipeline.weights == weights
        pipeline.strategy = strategy(ELSEWHERE, pipeline.strategy._read)
        for _ in range(2):
            assert np.array_equal(frames_of(pipeline), resident), strategy


def test_estimated_bytes() -> None:
    """Biases, norms and the scales of rows are counted as a byte a number or not at all: little, of wide layers."""
    denoiser = case(torch.float32)[0]
    keys = set(ReferenceNetwork(num_layers=1, num_attention_heads=1, position_rows=1).config)
    reference = ReferenceNetwork(**{key: value for key, value in SMALL.items() if key in keys})
    networks = {"transformer": denoiser, LAYERS: denoiser.transformer_blocks, "reference_network": reference}
    counts = {name: sum(x.numel() for x in network.parameters()) for name, network in networks.items()}
    bundle = BundleSizes(counts, SMALL, {}, SETTINGS)
    quantize("transformer", denoiser, "int8")
    quantize("reference_network", reference, "int8")
    for name, network in networks.items():
        stored = sum(x.qdata.nbytes if is_quantised(x) else x.nbytes for x in network.parameters())
        plain, estimated = (Sizes(bundle, small("cpu").work, kind).weights(name) for kind in ("full", "int8"))
        assert estimated < 0.8 * plain, name
        assert estimated == pytest.approx(stored, rel=0.05), name


def test_what_this_machine_cannot_do_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--weights int3: there is no such weights"):
        load(str(tiny_bundle), weights="int3")
    with pytest.raises(UserError, match="--weights fp8-compute: cpu here has no 8-bit products"):
        load(str(tiny_bundle), device="cpu", weights="fp8-compute")
    monkeypatch.setattr("hallo3.runtime.quantized.available", lambda: False)
    with pytest.raises(UserError, match=r"--weights int8: needs torchao.*hallo3\[quantized\]"):
        load(str(tiny_bundle), device="cpu", weights="int8")
