"""The embedded bundle's networks before training: sizes, and a start that learns faster than the published one.

A published network starts from CogVideoX; from scratch zero gates and random positions cost thousands of steps. Here
gates start open, the position tables start as sines and cosines, the same places alike in both networks, and the first
head of every layer starts by looking at the same place in every latent frame, the others at tokens that are alike.

And the denoiser starts with an answer: the picture of the motion frames, standing still. Part of a token carries the
image latents unchanged, the first head of the first layer brings to every token those of its place in the first latent
frame, and the output reads them. What is trained is what moves.
"""

from typing import Any

import torch
from diffusers.models.embeddings import get_3d_sincos_pos_embed
from torch import Tensor, nn

from hallo3.networks.attention import JointAttention
from hallo3.networks.denoiser import Hallo3Transformer3DModel
from hallo3.networks.reference import ReferenceNetwork

LATENT_CHANNELS = 16
PATCH = LATENT_CHANNELS * 4  # numbers in a patch of 2×2 latent cells
FREE = 2 * PATCH  # channels kept for content: a token's own, and what is copied to it
CONTENT = 0.5  # how strongly content stands in a token
STEADY, MARK = 6.0, 2.0  # constants of a token; whether it is of the first latent frame
LENGTHS = (0.84, 0.84, 0.55, 0.55)  # of the constant queries and keys, by pair of channels
TEXT_LENGTH = 48  # drawn captions have up to 48 word pieces
LATENT_GRID = (16, 24)
LATENT_FRAMES = 13

SHARED: dict[str, Any] = {
    "num_layers": 4,
    "num_attention_heads": 3,
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
    """`denoiser` and, where it takes one, `reference_network` of the embedded size, ready to be trained from scratch.

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
        if _has_room(network):
            _keep_content(network)
        # Text and face begin without effect: what they say is learned, and what was never trained on does no harm.
        nn.init.zeros_(network.get_parameter("token_embedding.text_proj.weight"))
    if _has_room(denoiser):
        _stand_still(denoiser)
    if denoiser.identity.face == "attention":
        nn.init.zeros_(denoiser.face_projection.proj.weight)
    networks = nn.ModuleDict({"denoiser": denoiser})
    if denoiser.identity.reference:
        networks["reference_network"] = reference
    return networks


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
        for start in (0, width):
            weight[start : start + size] *= 0.1
            bias[start : start + size] = _same_place(size)
        module.norm_q.weight.fill_(1.2)
        module.norm_k.weight.fill_(1.2)


def _same_place(size: int) -> Tensor:
    """A query, and a key, of a head of `size` channels that agree where row and column are the same."""
    place = torch.zeros(size)
    for pair, length in zip((size // 4, size * 5 // 8, size // 4 + 2, size * 5 // 8 + 2), LENGTHS, strict=True):
        place[pair], place[pair + 1] = length, -length
    return place


@torch.no_grad()
def _place(network: nn.Module, frames: int) -> None:
    """Sines and cosines of the position, and constants that keep a token's norm about the same whatever it shows."""
    table = network.get_parameter("token_embedding.position_table")
    table.zero_()
    rows, columns = LATENT_GRID[0] // 2, LATENT_GRID[1] // 2
    kept = FREE if _has_room(network) else 0
    places = get_3d_sincos_pos_embed(table.shape[-1] - kept, (columns, rows), frames, output_type="pt")
    table[0, TEXT_LENGTH:, kept:] = places.flatten(0, 1).to(table)
    if not kept:
        return
    table[0, :, kept:] -= table[0, :, kept:].mean(-1, keepdim=True)  # or the norms would take it from the content
    table[0, :, -4:] = torch.tensor([STEADY, -STEADY, STEADY, -STEADY])
    table[0, TEXT_LENGTH:, -6] = -MARK
    table[0, TEXT_LENGTH : TEXT_LENGTH + rows * columns, -6] = MARK
    table[0, :, -5] = -table[0, :, -6]


def _has_room(network: Any) -> bool:
    """Whether content fits into a token and a patch into a head; smaller networks, as in tests, start without."""
    config = network.config
    return config.num_attention_heads * config.attention_head_dim >= FREE + 32 and config.attention_head_dim >= PATCH


@torch.no_grad()
def _keep_content(network: nn.Module) -> None:
    """Channels 0 to 63 of a token are its patch of the image latents; nothing writes there or to 64 to 127 yet."""
    weight, bias = (network.get_parameter(f"token_embedding.proj.{name}") for name in ("weight", "bias"))
    weight[:FREE], bias[:FREE] = 0, 0
    weight[:PATCH, LATENT_CHANNELS:] = CONTENT * torch.eye(PATCH).unflatten(1, (LATENT_CHANNELS, 2, 2))
    weight[-6:], bias[-6:] = 0, 0
    for name, parameter in network.named_parameters():
        if name.endswith(("attention.to_out.weight", "mlp.net.2.weight", "attention.to_out.bias", "mlp.net.2.bias")):
            parameter[:FREE] = 0
            parameter[-6:] = 0


@torch.no_grad()
def _stand_still(denoiser: Hallo3Transformer3DModel) -> None:
    """The first head of the first layer finds the first latent frame and copies its content; the output reads that.

    After a layer norm a channel is what it was over the token's deviation, so gains are that deviation; the last one is
    fitted. The prediction at the noisiest timesteps is v = −x0.
    """
    attention = denoiser.transformer_blocks[0].get_submodule("attention")
    assert isinstance(attention, JointAttention)
    weight, bias = attention.to_qkv.weight, attention.to_qkv.bias
    size, width = attention.norm_q.normalized_shape[0], attention.to_out.in_features
    deviation = ((4 * STEADY**2 + 2 * MARK**2 + (width - FREE - 6) / 2 + PATCH * CONTENT**2) / width) ** 0.5
    pair = size // 4 - 2  # turns least from frame to frame
    weight[:size], weight[width : width + size], weight[2 * width : 2 * width + size] = 0, 0, 0
    bias[pair], bias[pair + 1] = LENGTHS[0], -LENGTHS[0]
    weight[width + pair, -6] = weight[width + pair + 1, -5] = LENGTHS[0] * deviation / MARK
    weight[2 * width : 2 * width + PATCH, :PATCH] = torch.eye(PATCH)
    bias[2 * width : 2 * width + size] = 0
    directed = _same_place(size) != 0
    directed[pair : pair + 2] = True
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight[directed] = 2.2
    attention.to_out.weight[:, :size] = 0
    attention.to_out.weight[PATCH:FREE, :PATCH] = deviation * torch.eye(PATCH)
    denoiser.proj_out.weight[:, PATCH:FREE] = torch.eye(PATCH)
    noise, picture = torch.randn(2, 1, 2, LATENT_CHANNELS, *LATENT_GRID, generator=torch.Generator().manual_seed(0))
    picture[:, 1] = 0
    text = torch.zeros(1, TEXT_LENGTH, denoiser.config.text_embed_dim)
    shown = denoiser(torch.cat([noise, picture], 2), torch.tensor([999]), text)[:, 0]
    denoiser.proj_out.weight *= -(shown * picture[:, 0]).sum() / shown.square().sum()
