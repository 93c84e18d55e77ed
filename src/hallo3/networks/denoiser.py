"""The denoising network of Hallo3."""

from collections.abc import Callable, Sequence
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

from .attention import CrossAttention
from .blocks import Hallo3Block
from .conditions import Condition, DenoiserConditions
from .embeddings import RotaryPositions, TokenEmbedding, start_at_zero, unpatchify, video_rows
from .layers import at_hand
from .products import multiply_fast
from .projections import FaceProjection, FaceTimeProjection, SpeechProjection, SpeechTimeProjection
from .variants import DEFAULT_IDENTITY, DEFAULT_SPEECH, IDENTITY_CONDITIONINGS, check_conditioning


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
        speech_conditioning, identity_conditioning: the variants that the paper compares (`variants.py`). A network has
            the modules of its variant alone.
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
        speech_conditioning: str = DEFAULT_SPEECH,
        identity_conditioning: str = DEFAULT_IDENTITY,
    ):
        super().__init__()
        check_conditioning(speech_conditioning, identity_conditioning)
        self.identity = IDENTITY_CONDITIONINGS[identity_conditioning]
        self.speech_is_added = speech_conditioning == "norm"
        heads, head_dim = num_attention_heads, attention_head_dim
        width = heads * head_dim
        self.token_embedding = TokenEmbedding(in_channels, width, patch_size, text_embed_dim, position_rows)
        # Sinusoids have their cosines first and a largest period of 10,000.
        self.time_sinusoids = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, time_embed_dim)
        self.rotary = RotaryPositions(head_dim)
        self.speech_projection = self._make_speech_projection()
        self.face_projection = self._make_face_projection()
        self.transformer_blocks = nn.ModuleList(
            Hallo3Block(
                width,
                heads,
                head_dim,
                time_embed_dim,
                face_token_dim if self.identity.face == "attention" else None,
                None if self.speech_is_added else speech_token_dim,
                speech_joins=speech_conditioning == "joint",
            )
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
        multiply_fast(self)
        self.gradient_checkpointing = False

    def _make_speech_projection(self) -> SpeechProjection:
        k = self.config
        read = (k.speech_window, k.speech_blocks, k.speech_channels)
        made = (k.speech_intermediate_dim, k.speech_tokens, k.speech_token_dim)
        if self.speech_is_added:
            return SpeechTimeProjection(*read, *made, k.time_embed_dim)
        return SpeechProjection(*read, *made)

    def _make_face_projection(self) -> nn.Module | None:
        k = self.config
        if self.identity.face is None:
            return None
        if self.identity.face == "norm":
            return FaceTimeProjection(k.face_embed_dim, k.time_embed_dim)
        return FaceProjection(k.face_embed_dim, k.face_tokens, k.face_token_dim)

    @property
    def _blocks(self) -> Sequence[Hallo3Block]:
        return cast(Sequence[Hallo3Block], self.transformer_blocks)

    @apply_forward_hook
    def prepare_speech(self, windows: Tensor) -> Condition:
        """What windows `(B, F, window, blocks, channels)` of F = 4(T − 1) + 1 frames give: see `DenoiserConditions`.

        Zero windows, the dropped speech of guidance, go through the projection like any others.
        """
        return self.spread_speech(self.speech_projection(windows))

    @apply_forward_hook
    def spread_speech(self, projected: Tensor) -> Condition:
        """The rest of `prepare_speech`, from what `speech_projection` gave; its weights are not needed any more."""
        if self.speech_is_added:
            return projected
        return self._by_layer(lambda block, tokens: block.speech_key_value(tokens), [projected] * len(self._blocks))

    def _by_layer(self, make: Callable[[Hallo3Block, Tensor], Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """What each layer makes of its input, outside a forward."""
        made = []
        for block, given in zip(self._blocks, inputs, strict=True):
            with at_hand(block):
                made.append(make(block, given))
        return made

    @apply_forward_hook
    def prepare_face(self, embedding: Tensor) -> Condition:
        """What a face embedding `(B, face_embed_dim)` gives. Raises ValueError for a network that takes none."""
        projected = self._project_face(embedding)
        if self.identity.face == "norm":
            return projected
        return self._by_layer(lambda block, tokens: block.face_key_value(tokens), [projected] * len(self._blocks))

    @apply_forward_hook
    def prepare_reference(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Keys and values of every layer from the reference network's features, one `(B, n, width)` a layer.

        Raises ValueError for a network that takes none, and for another number of features.
        """
        return self._by_layer(lambda block, feature: block.reference_key_value(feature), self._checked(features))

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

        def spread(projected: Tensor, added: bool) -> Condition:
            return projected if added else [projected] * len(self.transformer_blocks)

        return DenoiserConditions(
            reference=None if reference is None else self._checked(reference),
            face=None if face is None else spread(self._project_face(face), self.identity.face == "norm"),
            speech=None if speech is None else spread(self.speech_projection(speech), self.speech_is_added),
        )

    def in_variant(self, speech_conditioning: str, identity_conditioning: str) -> "Hallo3Transformer3DModel":
        """This network conditioned in another of the paper's ways.

        Weights are copied as far as both have them; what is new starts as in a new network. Raises ValueError for an
        unknown name.
        """
        sizes = {name: value for name, value in self.config.items() if not name.startswith("_")}
        names = {"speech_conditioning": speech_conditioning, "identity_conditioning": identity_conditioning}
        other = type(self)(**sizes | names)
        # Two ways of conditioning call these alike and mean something else by them.
        foreign = {
            ".speech_attention.": speech_conditioning != self.config.speech_conditioning,
            "face_projection.": other.identity.face != self.identity.face,
        }
        left = tuple(part for part, differs in foreign.items() if differs)
        wanted = other.state_dict().keys()
        kept = {n: x for n, x in self.state_dict().items() if n in wanted and not any(part in n for part in left)}
        other.load_state_dict(kept, strict=False)
        return other.to(self.proj_out.weight).train(self.training)

    def fold_outputs(self, *, face: bool, speech: bool) -> None:
        """Chooses how face and speech attention project their outputs (see `FoldedCrossAttentionProcessor`).

        Folded, the results are equal up to rounding and take fewer operations: at the published size 3.3 % fewer with
        `face`, 5 % with both. Whether that is less time depends on the machine; a new network folds neither. Variants
        without such an attention have nothing to fold.
        """
        for block in self._blocks:
            for name, folded in (("face_attention", face), ("speech_attention", speech)):
                attention = getattr(block, name, None)
                if isinstance(attention, CrossAttention):
                    attention.fold(folded)

    def _project_face(self, embedding: Tensor) -> Tensor:
        if self.face_projection is None:
            raise ValueError(
                f"identity_conditioning is {self.config.identity_conditioning!r}: this network takes no face"
            )
        return self.face_projection(embedding).unsqueeze(1)

    def _checked(self, features: Sequence[Tensor]) -> list[Tensor]:
        if not self.identity.reference:
            name = self.config.identity_conditioning
            raise ValueError(f"identity_conditioning is {name!r}: this network takes no reference")
        if len(features) != len(self.transformer_blocks):
            raise ValueError(f"{len(features)} reference features for {len(self.transformer_blocks)} layers")
        return list(features)

    def enable_parallelism(self, **options: Any) -> None:
        """Diffusers' parallelism (see `ModelMixin.enable_parallelism`).

        Raises ValueError for speech in the joint attention: the plan shares out the video tokens of every latent frame,
        and knows nothing of speech tokens beside them.
        """
        if self.config.speech_conditioning == "joint":
            raise ValueError("speech_conditioning is 'joint': this network can't be spread over devices; use one")
        super().enable_parallelism(**options)

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
        if conditions.speech_frames not in (None, frames):
            raise ValueError(f"speech for {conditions.speech_frames} latent frames, latents of {frames}")
        video, text = self.token_embedding(latents, text_embeds)
        temb = self.time_embedding(self.time_sinusoids(timestep.expand(len(latents))).to(video.dtype))
        temb = conditions.told(temb)
        rotary = self.rotary(frames, rows, columns, video.device)
        for i, block in enumerate(self.transformer_blocks):
            inputs = (video, text, temb, rotary, *conditions.layer(i))
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                video, text = self._gradient_checkpointing_func(block, *inputs)
            else:
                video, text = block(*inputs)
        video = self._norm_out(self.norm_final(video), video_rows(temb))
        return unpatchify(self.proj_out(video), rows, columns, self.token_embedding.patch_size)

    def _norm_out(self, video: Tensor, temb: Tensor) -> Tensor:
        """The last norm of video `(B, T, n, width)`, with a time embedding `(B, 1 or T, time_embed_dim)`."""
        # Frames with the same embedding are normed together.
        together = video.reshape(temb.shape[0] * temb.shape[1], -1, video.shape[-1])
        return self.norm_out(together, temb=temb.flatten(0, 1)).view(video.shape)
