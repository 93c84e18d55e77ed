"""The layer that the denoiser and the reference network share, and what each adds to it."""

from collections.abc import Sequence

import torch
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from .attention import CrossAttention, JoiningTokens, JointAttention
from .embeddings import Modulation, Modulations, Rotary, modulate


class SharedBlock(nn.Module):
    """Joint attention and MLP over text and video, modulated by the time embedding (CogVideoX's layer)."""

    def __init__(self, width: int, heads: int, head_dim: int, time_embed_dim: int):
        super().__init__()
        self.modulation = Modulation(time_embed_dim, width)
        self.norm_attention = nn.LayerNorm(width, eps=1e-5)
        self.attention = JointAttention(width, heads, head_dim)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-5)
        self.mlp = FeedForward(width, activation_fn="gelu-approximate")

    def attend(
        self, video: Tensor, text: Tensor, modulations: Modulations, rotary: Rotary, joining: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Joint attention. Returns video, text and the input that the attention took from the video."""
        (shift, scale, gate), _, (text_shift, text_scale, text_gate), _ = modulations
        video_in = modulate(self.norm_attention(video), shift, scale)
        text_in = modulate(self.norm_attention(text), text_shift, text_scale)
        video_out, text_out = self.attention(video_in, text_in, rotary, joining)
        return torch.addcmul(video, gate, video_out), torch.addcmul(text, text_gate, text_out), video_in

    def feed(self, video: Tensor, text: Tensor, modulations: Modulations) -> tuple[Tensor, Tensor]:
        """The MLP."""
        _, (shift, scale, gate), _, (text_shift, text_scale, text_gate) = modulations
        video_out = self.mlp(modulate(self.norm_mlp(video), shift, scale))
        text_out = self.mlp(modulate(self.norm_mlp(text), text_shift, text_scale))
        return torch.addcmul(video, gate, video_out), torch.addcmul(text, text_gate, text_out)


class Hallo3Block(SharedBlock):
    """A layer of the denoiser: joint attention that also sees the reference, face and speech attention, MLP.

    A condition comes as tokens, or as the keys and values made of them before; `None` skips it.

    Args:
        face_token_dim, speech_token_dim: widths of the tokens; `None` for a denoiser whose layers see none.
        speech_joins: speech tokens take part in the joint attention, in place of a cross-attention to them.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        time_embed_dim: int,
        face_token_dim: int | None,
        speech_token_dim: int | None,
        speech_joins: bool = False,
    ):
        super().__init__(width, heads, head_dim, time_embed_dim)
        self.speech_joins = speech_joins
        if face_token_dim is not None:
            self.norm_face = nn.LayerNorm(width, eps=1e-5)
            self.face_attention = CrossAttention(width, heads, head_dim, face_token_dim)
        if speech_token_dim is not None and speech_joins:
            self.speech_attention: CrossAttention | JoiningTokens = JoiningTokens(heads, head_dim, speech_token_dim)
        elif speech_token_dim is not None:
            self.norm_speech = nn.LayerNorm(width, eps=1e-5)
            self.speech_attention = CrossAttention(width, heads, head_dim, speech_token_dim)

    def reference_key_value(self, feature: Tensor) -> Tensor:
        """This layer's reference feature `(B, n, width)` → keys and values `(B, n, 2, heads, head_dim)`."""
        return self.attention.reference_key_value(feature)

    def face_key_value(self, tokens: Tensor) -> Tensor:
        """Face tokens `(B, 1, m, c)` → keys and values `(B, 1, m, 2, heads, head_dim)`."""
        return self.face_attention.key_value(tokens, self.attention.norm_k)

    def speech_key_value(self, tokens: Tensor) -> Tensor:
        """Speech tokens `(B, T, m, c)` → keys and values `(B, T, m, 2, heads, head_dim)`."""
        return self.speech_attention.key_value(tokens, self.attention.norm_k)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary: Rotary,
        reference: Tensor | None,
        face: Tensor | None,
        speech: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Video `(B, T, n, width)` and text `(B, L, width)`, under the names diffusers' hooks look for → the same."""
        # Tokens become keys and values here, so that checkpointing, sharding and offload of a layer cover it.
        if reference is not None and reference.ndim == 3:
            reference = self.reference_key_value(reference)
        if face is not None and face.ndim == 4:
            face = self.face_key_value(face)
        if speech is not None and speech.ndim == 4:
            speech = self.speech_key_value(speech)
        joining = [] if reference is None else [reference]
        if speech is not None and self.speech_joins:
            joining.append(self.speech_attention(speech, rotary))
        modulations = self.modulation(temb)
        video, text, _ = self.attend(hidden_states, encoder_hidden_states, modulations, rotary, joining)
        norm_q = self.attention.norm_q
        if face is not None:
            video = video + self.face_attention(self.norm_face(video), face, rotary, norm_q)
        if speech is not None and not self.speech_joins:
            video = video + self.speech_attention(self.norm_speech(video), speech, rotary, norm_q)
        return self.feed(video, text, modulations)


class ReferenceBlock(SharedBlock):
    """A layer of the reference network; it also gives its feature, the video input of its attention."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary: Rotary
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Video `(B, T, n, width)`, text `(B, L, width)` → video, text and feature `(B, T, n, width)`."""
        modulations = self.modulation(temb)
        video, text, feature = self.attend(hidden_states, encoder_hidden_states, modulations, rotary)
        return (*self.feed(video, text, modulations), feature)


class LastReferenceBlock(nn.Module):
    """The last layer of the reference network: nothing comes after its feature, so nothing else is kept of it."""

    def __init__(self, width: int, time_embed_dim: int):
        super().__init__()
        self.modulation = Modulation(time_embed_dim, width)
        self.norm_attention = nn.LayerNorm(width, eps=1e-5)

    def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
        """Video `(B, T, n, width)` → feature `(B, T, n, width)`."""
        shift, scale, _ = self.modulation(temb)[0]
        return modulate(self.norm_attention(hidden_states), shift, scale)
