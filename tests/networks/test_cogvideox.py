"""Without reference, face and speech the denoiser is diffusers' CogVideoX."""

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from network_cases import TINY, assert_agree, randomise, tiny_denoiser, tiny_inputs, tiny_reference

from hallo3.bundles.names import cogvideox_sources

ROWS, COLUMNS, FRAMES, WORDS = 3, 4, 3, 5


def cogvideox() -> CogVideoXTransformer3DModel:
    network = CogVideoXTransformer3DModel(
        num_attention_heads=TINY["num_attention_heads"],
        attention_head_dim=TINY["attention_head_dim"],
        in_channels=32,
        out_channels=16,
        time_embed_dim=TINY["time_embed_dim"],
        text_embed_dim=TINY["text_embed_dim"],
        num_layers=TINY["num_layers"],
        sample_height=2 * ROWS,
        sample_width=2 * COLUMNS,
        sample_frames=4 * (FRAMES - 1) + 1,
        max_text_seq_length=WORDS,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    return randomise(network, seed=3).eval()


def converted(network: CogVideoXTransformer3DModel) -> dict[str, torch.Tensor]:
    state = network.state_dict()

    def part(name: str, half: int | None) -> torch.Tensor:
        return state[name] if half is None else state[name].chunk(2)[half]

    return {
        ours: torch.cat([part(*source) for source in sources])
        for ours, sources in cogvideox_sources(network.config.num_layers).items()
    }


@torch.no_grad()
def test_equals_cogvideox():
    theirs = cogvideox()
    denoiser = tiny_denoiser(position_rows=WORDS + FRAMES * ROWS * COLUMNS)
    missing, unexpected = denoiser.load_state_dict(converted(theirs), strict=False)
    assert not unexpected
    assert all("speech" in name or "face" in name for name in missing)
    (latents, timestep, text), _ = tiny_inputs(denoiser.config, frames=FRAMES, rows=ROWS, columns=COLUMNS, words=WORDS)
    size = (ROWS, COLUMNS)
    tables = get_3d_rotary_pos_embed(theirs.config.attention_head_dim, ((0, 0), size), size, FRAMES)
    (expected,) = theirs(latents, text, timestep, image_rotary_emb=tables, return_dict=False)
    assert_agree(denoiser(latents, timestep, text), expected)


def test_reference_network_starts_from_cogvideox():
    names = set(cogvideox_sources(TINY["num_layers"]))
    assert set(tiny_reference().state_dict()) <= names
