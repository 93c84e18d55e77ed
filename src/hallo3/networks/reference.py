"""The reference network of Hallo3."""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from .blocks import LastReferenceBlock, ReferenceBlock
from .embeddings import RotaryPositions, TokenEmbedding
from .products import multiply_fast


class ReferenceNetwork(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):
    """Identity reference network (paper 3.3): the denoiser without face and speech attention, seen from inside.

    Its features are what each of its layers would attend with; the denoiser attends to them. They depend on the
    portrait (and the text) alone: run it once per portrait. It predicts nothing, so the output part and all but the
    first norm of the last layer are left out. Arguments as for `Hallo3Transformer3DModel`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ReferenceBlock", "LastReferenceBlock", "TokenEmbedding"]  # noqa: RUF012
    _repeated_blocks = ["ReferenceBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["token_embedding", "modulation", "norm"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        num_layers: int = 42,
        num_attention_heads: int = 48,
        attention_head_dim: int = 64,
        in_channels: int = 32,
        patch_size: int = 2,
        time_embed_dim: int = 512,
        text_embed_dim: int = 4096,
        position_rows: int = 226 + 13 * 1350,
    ):
        super().__init__()
        heads, head_dim = num_attention_heads, attention_head_dim
        width = heads * head_dim
        self.token_embedding = TokenEmbedding(in_channels, width, patch_size, text_embed_dim, position_rows)
        # Sinusoids have their cosines first and a largest period of 10,000.
        self.time_sinusoids = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, time_embed_dim)
        self.rotary = RotaryPositions(head_dim)
        self.transformer_blocks = nn.ModuleList(
            ReferenceBlock(width, heads, head_dim, time_embed_dim) for _ in range(num_layers - 1)
        )
        self.transformer_blocks.append(LastReferenceBlock(width, time_embed_dim))
        multiply_fast(self)
        self.gradient_checkpointing = False

    def forward(self, latents: Tensor, text_embeds: Tensor) -> list[Tensor]:
        """The portrait's features, at timestep 0.

        Args:
            latents: the portrait's latent, background black, twice on channels: `(B, 1, in_channels, h, w)`.
            text_embeds: `(B, L, text_embed_dim)`; zeros at inference, the caption in training.

        Returns:
            one feature `(B, n, width)` a layer of the denoiser.
        """
        grid = self.token_embedding.grid(latents)
        video, text = self.token_embedding(latents, text_embeds)
        timestep = torch.zeros(len(latents), device=latents.device)
        temb = self.time_embedding(self.time_sinusoids(timestep).to(video.dtype)).unsqueeze(1)
        rotary = self.rotary(*grid, video.device)
        features = []
        *blocks, last = self.transformer_blocks
        for block in blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                video, text, feature = self._gradient_checkpointing_func(block, video, text, temb, rotary)
            else:
                video, text, feature = block(video, text, temb, rotary)
            features.append(feature.flatten(1, 2))
        return [*features, last(video, temb).flatten(1, 2)]
