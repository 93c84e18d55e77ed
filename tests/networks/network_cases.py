"""The recorded networks, and small networks of random weights, for the tests of this folder."""

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from hallo3.bundles.names import denoiser_config_from_state, denoiser_key_map, reference_key_map
from hallo3.networks import Hallo3Transformer3DModel, ReferenceNetwork

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "dit"
TINY = {
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 12,
    "text_embed_dim": 10,
    "position_rows": 400,
    "speech_channels": 3,
    "speech_blocks": 2,
    "speech_intermediate_dim": 8,
    "speech_tokens": 4,
    "speech_token_dim": 6,
    "face_embed_dim": 7,
    "face_tokens": 3,
    "face_token_dim": 5,
}
REFERENCE_KEYS = {
    "num_layers",
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "patch_size",
    "time_embed_dim",
    "text_embed_dim",
    "position_rows",
}


def published_state(prefix: str) -> dict[str, Tensor]:
    path = GOLDEN / "hallo3" / "1" / "mp_rank_00_model_states.pt"
    state = torch.load(path, weights_only=True, mmap=True)["module"]
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def golden_io() -> dict[str, Tensor]:
    return load_file(GOLDEN / "transformer_io.safetensors")


@cache
def golden_networks() -> tuple[Hallo3Transformer3DModel, ReferenceNetwork]:
    networks = []
    for cls, prefix, key_map in (
        (Hallo3Transformer3DModel, "model.diffusion_model.", denoiser_key_map),
        (ReferenceNetwork, "ref_model.diffusion_model.", reference_key_map),
    ):
        state = published_state(prefix)
        config = denoiser_config_from_state({name: tuple(tensor.shape) for name, tensor in state.items()})
        if cls is ReferenceNetwork:
            config = {key: config[key] for key in REFERENCE_KEYS}
        network = cls(**config).eval()
        names = key_map(config["num_layers"])
        network.load_state_dict({ours: state[theirs] for theirs, ours in names.items()})
        networks.append(network)
    return tuple(networks)


def randomise(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights everywhere: those that start at zero would hide what lies behind them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.9 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(noise * scale + float("norm" in name and name.endswith("weight") and parameter.ndim == 1))
    return network


def tiny_denoiser(**changes: int | str) -> Hallo3Transformer3DModel:
    return randomise(Hallo3Transformer3DModel(**TINY | changes)).eval()


def tiny_reference(**changes: int) -> ReferenceNetwork:
    config = {key: value for key, value in (TINY | changes).items() if key in REFERENCE_KEYS}
    return randomise(ReferenceNetwork(**config), seed=1).eval()


def tiny_inputs(
    config: dict, batch: int = 2, frames: int = 3, rows: int = 3, columns: int = 4, words: int = 5, seed: int = 2
) -> tuple[tuple[Tensor, ...], dict]:
    """Arguments of a forward: (latents, timestep, text), and speech, face and reference."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    width = config["num_attention_heads"] * config["attention_head_dim"]
    windows = (config["speech_window"], config["speech_blocks"], config["speech_channels"])
    inputs = (
        random(batch, frames, config["in_channels"], 2 * rows, 2 * columns),
        torch.randint(1000, (batch,), generator=generator),
        random(batch, words, config["text_embed_dim"]),
    )
    return inputs, {
        "speech": random(batch, 4 * (frames - 1) + 1, *windows),
        "face": random(batch, config["face_embed_dim"]),
        "reference": [random(batch, rows * columns, width) for _ in range(config["num_layers"])],
    }


def assert_agree(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """The largest difference is within `tolerance` of the largest value (and there is a value)."""
    assert actual.shape == expected.shape
    largest = expected.abs().max().item()
    assert largest > 1e-3
    assert (actual - expected).abs().max().item() <= tolerance * largest
