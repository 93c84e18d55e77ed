"""The denoising network of Hallo3."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.normalization import AdaLayerNorm
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from .blocks import Hallo3Block
from .conditions import DenoiserConditions
from .embeddings import RotaryPositions, TokenEmbedding, start_at_zero, unpatchify
from .projections import FaceProjection, SpeechProjection


class Hallo3Transformer3DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):
    """Denoiser of Hallo3 (paper 3): CogVideoX with a reference in its joint attention, face and speech attention.

    Its sizes are the configuration; grid, frames and text length are those of the inputs. Without reference, face and
    speech it is `CogVideoXTransformer3DModel`. The defaults are the published sizes.

    Args:
        num_layers, num_attention_heads, attention_head_dim: layers; the width is heads × head_dim.
        in_channels: noisy latents and image latents together. out_channels: latents.
        patch_size: latent pixels a token spans in each direction.
        time_embed_dim, text_embed_dim: widths of the time embedding and of the text embeddings.
        position_rows: rows of the learned position table, at least text length + latent frames · tokens a frame.
        speech_window, speech_blocks, speech_channels: video frames a window spans, layers of the speech encoder, their
            width. speech_intermediate_dim, speech_tokens, speech_token_dim: the speech projection.
        face_embed_dim, face_tokens, face_token_dim: the face projection.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Hallo3Block", "TokenEmbedding"]  # noqa: RUF012
    _repeated_blocks = ["Hallo3Block"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["token_embedding", "modulation", "norm"]  # noqa: RUF012
    # Every device takes a part of the tokens of *every* latent frame, so face and speech attention stay local.
    _cp_plan = {  # noqa: RUF012
        "rotary": {
            0: ContextParallelInput(split_dim=1, expected_dims=3, split_output=True),
            1: ContextParallelInput(split_dim=1, expected_dims=3, split_output=True),
        },
        "transformer_blocks.0": {
            "hidden_states": ContextParallelInput(split_dim=2, expected_dims=4),
            "encoder_hidden_states": ContextParallelInput(split_dim=1, expected_dims=3),
        },
        "transformer_blocks.*": {"reference": ContextParallelInput(split_dim=1)},
        "proj_out": ContextParallelOutput(gather_dim=2, expected_dims=4),
    }

    @register_to_config
    def __init__(
        self,
        num_layers: int = 42,
        num_attention_heads: int = 48,
        attention_head_dim: int = 64,
        in_channels: int = 32,
        out_channels: int = 16,
        patch_size: int = 2,
        time_embed_dim: int = 512,
        text_embed_dim: int = 4096,
        position_rows: int = 226 + 13 * 1350,
        speech_window: int = 5,
        speech_blocks: int = 12,
        speech_channels: int = 768,
        speech_intermediate_dim: int = 512,
        speech_tokens: int = 32,
        speech_token_dim: int = 768,
        face_embed_dim: int = 512,
        face_tokens: int = 4,
        face_token_dim: int = 1024,
    ):
        super().__init__()
        heads, head_dim = num_attention_heads, attention_head_dim
        width = heads * head_dim
        self.token_embedding = TokenEmbedding(in_channels, width, patch_size, text_embed_dim, position_rows)
        # Sinusoids have their cosines first and a largest period of 10,000.
        self.time_sinusoids = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, time_embed_dim)
        self.rotary = RotaryPositions(head_dim)
        self.speech_projection = SpeechProjection(
            speech_window, speech_blocks, speech_channels, speech_intermediate_dim, speech_tokens, speech_token_dim
        )
        self.face_projection = FaceProjection(face_embed_dim, face_tokens, face_token_dim)
        self.transformer_blocks = nn.ModuleList(
            Hallo3Block(width, heads, head_dim, time_embed_dim, face_token_dim, speech_token_dim)
            for _ in range(num_layers)
        )
        self.norm_final = nn.LayerNorm(width, eps=1e-5)
        self.norm_out = AdaLayerNorm(
            time_embed_dim, output_dim=2 * width, norm_elementwise_affine=True, norm_eps=1e-6, chunk_dim=1
        )
        self.proj_out = nn.Linear(width, out_channels * patch_size**2)
        # The prediction starts at zero, as every layer starts as the identity.
        start_at_zero(self.norm_out.linear)
        start_at_zero(self.proj_out)
        self.gradient_checkpointing = False

    @property
    def _blocks(self) -> Sequence[Hallo3Block]:
        return cast(Sequence[Hallo3Block], self.transformer_blocks)

    @apply_forward_hook
    def prepare_speech(self, windows: Tensor) -> list[Tensor]:
        """Keys and values of every layer from windows `(B, F, window, blocks, channels)` of F = 4(T − 1) + 1 frames.

        Zero windows, the dropped speech of guidance, go through the projection like any others.
        """
        tokens = self.speech_projection(windows)
        return [block.speech_key_value(tokens) for block in self._blocks]

    @apply_forward_hook
    def prepare_face(self, embedding: Tensor) -> list[Tensor]:
        """Keys and values of every layer from a face embedding `(B, face_embed_dim)`."""
        tokens = self.face_projection(embedding).unsqueeze(1)
        return [block.face_key_value(tokens) for block in self._blocks]

    @apply_forward_hook
    def prepare_reference(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Keys and values of every layer from the reference network's features, one `(B, n, width)` a layer."""
        pairs = zip(self._blocks, self._checked(features), strict=True)
        return [block.reference_key_value(feature) for block, feature in pairs]

    def conditions(
        self, *, speech: Tensor | None = None, face: Tensor | None = None, reference: Sequence[Tensor] | None = None
    ) -> DenoiserConditions:
        """All that the conditions give to the layers, computed once; the arguments are those of `forward`."""
        return DenoiserConditions(
            reference=None if reference is None else self.prepare_reference(reference),
            face=None if face is None else self.prepare_face(face),
            speech=None if speech is None else self.prepare_speech(speech),
        )

    def _tokens(
        self, speech: Tensor | None, face: Tensor | None, reference: Sequence[Tensor] | None
    ) -> DenoiserConditions:
        """The conditions as tokens, from which every layer makes its keys and values anew (the exact mode)."""
        layers = len(self.transformer_blocks)
        return DenoiserConditions(
            reference=None if reference is None else self._checked(reference),
            face=None if face is None else [self.face_projection(face).unsqueeze(1)] * layers,
            speech=None if speech is None else [self.speech_projection(speech)] * layers,
        )

    def _checked(self, features: Sequence[Tensor]) -> list[Tensor]:
        if len(features) != len(self.transformer_blocks):
            raise ValueError(f"{len(features)} reference features for {len(self.transformer_blocks)} layers")
        return list(features)

    def enable_cache(self, config: Any) -> None:
        """Diffusers' caches, to which our layer is made known first (see `CacheMixin.enable_cache`)."""
        from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

        TransformerBlockRegistry.register(
            Hallo3Block,
            TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1),
        )
        super().enable_cache(config)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text_embeds: Tensor,
        *,
        speech: Tensor | None = None,
        face: Tensor | None = None,
        reference: Sequence[Tensor] | None = None,
        conditions: DenoiserConditions | None = None,
    ) -> Tensor:
        """Predict v = √ᾱ·noise − √(1−ᾱ)·x0.

        With `conditions`, which `self.conditions` makes, nothing of speech, face and reference is computed again. With
        the three themselves everything is (the exact mode, and training). What is `None` is skipped.

        Args:
            latents: noisy latents and image latents on channels, `(B, T, in_channels, h, w)`.
            timestep: `(B,)` or a single one, 0…999.
            text_embeds: `(B, L, text_embed_dim)`.
            speech: windows `(B, 4(T − 1) + 1, window, blocks, channels)`.
            face: `(B or 1, face_embed_dim)`.
            reference: features of the reference network, one `(B or 1, n, width)` a layer.

        Returns:
            `(B, T, out_channels, h, w)`.

        Raises:
            ValueError: shapes that do not fit, or a sequence longer than the position table.
        """
        if conditions is None:
            conditions = self._tokens(speech, face, reference)
        elif not (speech is None and face is None and reference is None):
            raise ValueError("give either prepared conditions, or speech, face and reference themselves")
        frames, rows, columns = self.token_embedding.grid(latents)
        if conditions.speech is not None and conditions.speech[0].shape[1] != frames:
            raise ValueError(f"speech for {conditions.speech[0].shape[1]} latent frames, latents of {frames}")
        video, text = self.token_embedding(latents, text_embeds)
        temb = self.time_embedding(self.time_sinusoids(timestep.expand(len(latents))).to(video.dtype))
        rotary = self.rotary(frames, rows, columns, video.device)
        for i, block in enumerate(self.transformer_blocks):
            inputs = (video, text, temb, rotary, *conditions.layer(i))
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                video, text = self._gradient_checkpointing_func(block, *inputs)
            else:
                video, text = block(*inputs)
        video = self.norm_final(video)
        video = self.norm_out(video.flatten(1, 2), temb=temb).unflatten(1, (frames, -1))
        return unpatchify(self.proj_out(video), rows, columns, self.token_embedding.patch_size)
