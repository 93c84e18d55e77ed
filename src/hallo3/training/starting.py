"""The embedded bundle's networks before training: sizes, and a start that learns faster than the published one.

A published network starts from CogVideoX; from scratch zero gates and random positions cost thousands of steps. Here
gates start open, the position tables start as sines and cosines, the same places alike in both networks, the first head
of every layer starts by looking at the same place in every latent frame, and the others at tokens that are alike.
"""

from typing import Any

import torch
from diffusers.models.embeddings import get_3d_sincos_pos_embed
from torch import nn

from hallo3.networks.attention import JointAttention
from hallo3.networks.denoiser import Hallo3Transformer3DModel
from hallo3.networks.reference import ReferenceNetwork

TEXT_LENGTH = 48  # drawn captions have up to 48 word pieces
LATENT_GRID = (16, 24)
LATENT_FRAMES = 13

SHARED: dict[str, Any] = {
    "num_layers": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "time_embed_dim": 64,
    "text_embed_dim": 64,
}
CONDITIONS: dict[str, Any] = {
    "speech_channels": 32,
    "speech_intermediate_dim": 64,
    "speech_tokens": 8,
    "speech_token_dim": 48,
    "face_embed_dim": 64,
    "face_token_dim": 128,
}


def make_networks(shared: dict[str, Any], conditions: dict[str, Any], seed: int = 0) -> nn.ModuleDict:
    """`denoiser` and `reference_network` of the embedded size, ready to be trained from scratch.

    Args:
        shared: Configuration that both take. conditions: what only the denoiser takes.
    """
    tokens = LATENT_GRID[0] * LATENT_GRID[1] // 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = Hallo3Transformer3DModel(**shared, **conditions, position_rows=TEXT_LENGTH + LATENT_FRAMES * tokens)
        reference = ReferenceNetwork(**shared, position_rows=TEXT_LENGTH + tokens)
    for network, frames in ((denoiser, LATENT_FRAMES), (reference, 1)):
        _open_gates(network)
        _direct_heads(network)
        _place(network, frames)
        # Text and face begin without effect: what they say is learned, and what was never trained on does no harm.
        nn.init.zeros_(network.get_parameter("token_embedding.text_proj.weight"))
    nn.init.zeros_(denoiser.face_projection.proj.weight)
    return nn.ModuleDict({"denoiser": denoiser, "reference_network": reference})


@torch.no_grad()
def _open_gates(network: nn.Module) -> None:
    for name, module in network.named_modules():
        if name.endswith("modulation"):
            bias = module.get_submodule("linear").get_parameter("bias")
            for gate in bias.chunk(12)[2::3]:
                gate.fill_(1.0)


@torch.no_grad()
def _direct_heads(network: nn.Module) -> None:
    """Queries and keys of every joint attention.

    A constant query and key in the fastest pairs of row and column, rotated, agree at the same place in every frame.
    """
    for module in network.modules():
        if not isinstance(module, JointAttention):
            continue
        size = module.norm_q.normalized_shape[0]
        width = module.heads * size
        weight, bias = module.to_qkv.weight, module.to_qkv.bias
        weight[width : 2 * width] = weight[:width]
        bias[: 2 * width] = 0
        place = torch.zeros(size)
        for first, length in (
            (size // 4, 0.84),
            (size * 5 // 8, 0.84),
            (size // 4 + 2, 0.55),
            (size * 5 // 8 + 2, 0.55),
        ):
            place[first], place[first + 1] = length, -length
        for start in (0, width):
            weight[start : start + size] *= 0.1
            bias[start : start + size] = place
        module.norm_q.weight.fill_(1.2)
        module.norm_k.weight.fill_(1.2)


@torch.no_grad()
def _place(network: nn.Module, frames: int) -> None:
    table = network.get_parameter("token_embedding.position_table")
    rows, columns = LATENT_GRID[0] // 2, LATENT_GRID[1] // 2
    places = get_3d_sincos_pos_embed(table.shape[-1], (columns, rows), frames, output_type="pt")
    table[0, TEXT_LENGTH:] = places.flatten(0, 1).to(table)
