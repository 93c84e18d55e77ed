"""Names of the networks' tensors: published, CogVideoX's in diffusers, and ours.

Published names are without their prefix (`model.diffusion_model.`, `ref_model.diffusion_model.`). Nothing here imports
torch.
"""

from collections.abc import Mapping

_SHARED = {
    "mixins.patch_embed.proj": "token_embedding.proj",
    "mixins.patch_embed.text_proj": "token_embedding.text_proj",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
}
_POSITIONS = {"mixins.pos_embed.pos_embedding": "token_embedding.position_table"}
_OUTPUT = {
    "transformer.final_layernorm": "norm_final",
    "mixins.final_layer.adaLN_modulation.1": "norm_out.linear",
    "mixins.final_layer.norm_final": "norm_out.norm",
    "mixins.final_layer.linear": "proj_out",
}
_CONDITIONS = {
    "transformer.audio_proj.proj1": "speech_projection.proj1",
    "transformer.audio_proj.proj2": "speech_projection.proj2",
    "transformer.audio_proj.proj3": "speech_projection.proj3",
    "transformer.audio_proj.conv1": "speech_projection.conv",
    "transformer.audio_proj.norm": "speech_projection.norm",
    "transformer.face_proj.proj": "face_projection.proj",
    "transformer.face_proj.norm": "face_projection.norm",
}
_LAYER_INPUT = {
    "mixins.adaln_layer.adaLN_modulations.{i}.1": "modulation.linear",
    "transformer.layers.{i}.input_layernorm": "norm_attention",
}
_LAYER = {
    "mixins.adaln_layer.query_layernorm_list.{i}": "attention.norm_q",
    "mixins.adaln_layer.key_layernorm_list.{i}": "attention.norm_k",
    "transformer.layers.{i}.attention.query_key_value": "attention.to_qkv",
    "transformer.layers.{i}.attention.dense": "attention.to_out",
    "transformer.layers.{i}.post_attention_layernorm": "norm_mlp",
    "transformer.layers.{i}.mlp.dense_h_to_4h": "mlp.net.0.proj",
    "transformer.layers.{i}.mlp.dense_4h_to_h": "mlp.net.2",
}
_LAYER_CONDITIONS = {
    f"transformer.layers.{{i}}.{theirs}_{part}": f"{name}"
    for theirs, ours in (("face", "face"), ("audio", "speech"))
    for part, name in (
        ("input_layernorm", f"norm_{ours}"),
        ("attn.query", f"{ours}_attention.to_q"),
        ("attn.key_value", f"{ours}_attention.to_kv"),
        ("attn.dense", f"{ours}_attention.to_out"),
    )
}

UNUSED_NAMES = (
    "mixins.pos_embed.freqs_sin",
    "mixins.pos_embed.freqs_cos",
    "transformer.position_embeddings.weight",
)
"""Published tensors that neither network computes with; they may be missing."""


def _with_parameters(names: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{p}": f"{ours}.{p}" for theirs, ours in names.items() for p in ("weight", "bias")}


def _layer(index: int, names: Mapping[str, str]) -> dict[str, str]:
    return _with_parameters(
        {theirs.format(i=index): f"transformer_blocks.{index}.{ours}" for theirs, ours in names.items()}
    )


def denoiser_key_map(num_layers: int) -> dict[str, str]:
    """Published name → name in `Hallo3Transformer3DModel`; shapes are the same."""
    names = _with_parameters(_SHARED | _OUTPUT | _CONDITIONS) | _POSITIONS
    for i in range(num_layers):
        names |= _layer(i, _LAYER_INPUT | _LAYER | _LAYER_CONDITIONS)
    return names


def reference_key_map(num_layers: int) -> dict[str, str]:
    """Published name → name in `ReferenceNetwork`; shapes are the same."""
    names = _with_parameters(_SHARED) | _POSITIONS | _layer(num_layers - 1, _LAYER_INPUT)
    for i in range(num_layers - 1):
        names |= _layer(i, _LAYER_INPUT | _LAYER)
    return names


def reference_unused_names(num_layers: int) -> set[str]:
    """Published tensors of the reference network that come after its last feature; they may be missing."""
    return set(_with_parameters(_OUTPUT)) | set(_layer(num_layers - 1, _LAYER)) | set(UNUSED_NAMES)


def denoiser_config_from_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Configuration of the network that tensors of these published names and shapes belong to.

    Without speech or face tensors (the reference network, CogVideoX) their sizes are left out, and without the output
    part `out_channels`. Speech windows are taken to be 5 frames of 12 layers: only their product is in the tensors.

    Raises:
        KeyError: a tensor that every one of these networks has is missing.
    """
    width, in_channels, patch_size, _ = shapes["mixins.patch_embed.proj.weight"]
    (head_dim,) = shapes["mixins.adaln_layer.query_layernorm_list.0.weight"]
    config = {
        "num_layers": sum(
            name.startswith("transformer.layers.") and name.endswith(".input_layernorm.weight") for name in shapes
        ),
        "num_attention_heads": width // head_dim,
        "attention_head_dim": head_dim,
        "in_channels": in_channels,
        "patch_size": patch_size,
        "time_embed_dim": shapes["time_embed.0.weight"][0],
        "text_embed_dim": shapes["mixins.patch_embed.text_proj.weight"][1],
        "position_rows": shapes["mixins.pos_embed.pos_embedding"][1],
    }
    if "mixins.final_layer.linear.weight" in shapes:
        config["out_channels"] = shapes["mixins.final_layer.linear.weight"][0] // patch_size**2
    if "transformer.audio_proj.proj1.weight" in shapes:
        intermediate, features = shapes["transformer.audio_proj.proj1.weight"]
        (token_dim,) = shapes["transformer.audio_proj.norm.weight"]
        config |= {
            "speech_window": 5,
            "speech_blocks": 12,
            "speech_channels": features // 60,
            "speech_intermediate_dim": intermediate,
            "speech_tokens": shapes["transformer.audio_proj.proj3.weight"][0] // token_dim,
            "speech_token_dim": token_dim,
        }
    if "transformer.face_proj.proj.weight" in shapes:
        outputs, embed_dim = shapes["transformer.face_proj.proj.weight"]
        (token_dim,) = shapes["transformer.face_proj.norm.weight"]
        config |= {"face_embed_dim": embed_dim, "face_tokens": outputs // token_dim, "face_token_dim": token_dim}
    return config


Source = tuple[str, int | None]
"""A tensor of diffusers' CogVideoX; 0 or 1 for the first or second half of its rows, `None` for the whole."""


def cogvideox_sources(num_layers: int) -> dict[str, list[Source]]:
    """Our name → the tensors of diffusers' `CogVideoXTransformer3DModel` that make it, to be joined along rows.

    It covers what CogVideoX has: the denoiser without speech and face; for the reference network take the names it has.
    """
    sources: dict[str, list[Source]] = {"token_embedding.position_table": [("patch_embed.pos_embedding", None)]}
    whole = {f"token_embedding.{n}": f"patch_embed.{n}" for n in ("proj", "text_proj")}
    whole |= {n: n for n in ("time_embedding.linear_1", "time_embedding.linear_2", "norm_final", "proj_out")}
    whole |= {n: n for n in ("norm_out.linear", "norm_out.norm")}
    for i in range(num_layers):
        block = f"transformer_blocks.{i}."
        names = {
            "norm_attention": "norm1.norm",
            "norm_mlp": "norm2.norm",
            "attention.norm_q": "attn1.norm_q",
            "attention.norm_k": "attn1.norm_k",
            "attention.to_out": "attn1.to_out.0",
            "mlp.net.0.proj": "ff.net.0.proj",
            "mlp.net.2": "ff.net.2",
        }
        whole |= {block + ours: block + theirs for ours, theirs in names.items()}
        for p in ("weight", "bias"):
            sources[f"{block}attention.to_qkv.{p}"] = [(f"{block}attn1.to_{n}.{p}", None) for n in "qkv"]
            # Ours: video attention, video MLP, text attention, text MLP.
            sources[f"{block}modulation.linear.{p}"] = [
                (f"{block}norm{n}.linear.{p}", half) for half in (0, 1) for n in (1, 2)
            ]
    return sources | {
        f"{ours}.{p}": [(f"{theirs}.{p}", None)] for ours, theirs in whole.items() for p in ("weight", "bias")
    }
