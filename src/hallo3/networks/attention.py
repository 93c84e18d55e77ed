"""Joint attention over text, video and the tokens of conditions, and cross-attention to face or speech tokens.

Both go through diffusers' attention dispatcher, so its backends and context parallelism apply. What a condition gives
to a layer is one tensor, its *keys and values* `(..., m, 2, heads, head_dim)`; it does not depend on the sampling step
and can be kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from .embeddings import Rotary, start_at_zero
from .products import Linear, product


class FusedLinear(Linear):
    """Several projections of one input, stacked along the output; the first ones can be left out."""

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """`(..., in_features)` → `(..., out_features − start)`: the outputs from `start` on."""
        if start == 0:
            return super().forward(x)
        return product(x, self.weight[start:], self.bias[start:])


class OutputLinear(Linear):
    """The projection after an attention; it can take the attention's parts in place of its result."""

    def forward(self, x: Tensor, values: Tensor | None = None) -> Tensor:
        """`(..., in_features)` → `(..., out_features)`; or the result of attention, projected, from its parts.

        With `values` `(N, m, heads, head_dim)`, x is the attention's probabilities `(N, n, heads·m)`. The values are
        projected, head by head, and then weighted: heads·m products a query and output in place of heads·head_dim.
        """
        if values is None:
            return super().forward(x)
        heads, head_dim = values.shape[2:]
        by_head = self.weight.view(-1, heads, head_dim).permute(1, 2, 0)
        projected = torch.matmul(values.transpose(1, 2), by_head).flatten(1, 2)
        return torch.baddbmm(self.bias, x, projected)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary embedding of `(B, m, heads, head_dim)` with tables `(m, head_dim)`; adjacent channels are pairs.

    Run directly, a complex product passes once over the data and is many times faster than diffusers' function; a
    compiler makes one pass of that one, and has none for complex numbers.
    """
    if torch.compiler.is_compiling():
        tables: Any = rotary
        return apply_rotary_emb(x, tables, sequence_dim=1)  # type: ignore[return-value]
    turns = torch.complex(*(table[:, None, ::2] for table in rotary))
    return torch.view_as_real(torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * turns).flatten(-2).to(x.dtype)


def normed_key_value(fused: Tensor, heads: int, norm_k: nn.Module) -> Tensor:
    """Keys and values in one, `(…, 2·heads·head_dim)` → `(…, 2, heads, head_dim)`, the keys normed."""
    key, value = fused.unflatten(-1, (2, heads, -1)).unbind(-3)
    return torch.stack([norm_k(key), value], -3)


class JointAttentionProcessor:
    """Attention of text and video queries to the keys of text, video and what joins them."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: "JointAttention", video: Tensor, text: Tensor, rotary: Rotary, joining: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        text_q, text_k, text_v = attn.heads_of(attn.to_qkv(text))
        video_q, video_k, video_v = attn.heads_of(attn.to_qkv(video.flatten(1, 2)))
        tables = rotary[0].flatten(0, 1), rotary[1].flatten(0, 1)
        video_q, video_k = rotate(attn.norm_q(video_q), tables), rotate(attn.norm_k(video_k), tables)
        keys, values = [attn.norm_k(text_k), video_k], [text_v, video_v]
        for key_value in joining:
            key, value = key_value.expand(len(video), *key_value.shape[1:]).unbind(2)
            keys.append(key)
            values.append(value)
        out = dispatch_attention_fn(
            torch.cat([attn.norm_q(text_q), video_q], 1),
            torch.cat(keys, 1),
            torch.cat(values, 1),
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        text_out, video_out = attn.to_out(out.flatten(2)).split([text.shape[1], video_q.shape[1]], 1)
        return video_out.unflatten(1, video.shape[1:3]), text_out


class JointAttention(nn.Module, AttentionModuleMixin):
    """Joint attention of one layer: fused q, k, v; norms per head; rotary embedding on video only."""

    _default_processor_cls: Any = JointAttentionProcessor
    _available_processors: list[Any] = [JointAttentionProcessor]  # noqa: RUF012
    _supports_qkv_fusion = False  # it is fused already

    def __init__(self, width: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = FusedLinear(width, 3 * heads * head_dim)
        self.norm_q = nn.LayerNorm(head_dim, eps=1e-6)
        self.norm_k = nn.LayerNorm(head_dim, eps=1e-6)
        self.to_out = nn.Linear(heads * head_dim, width)
        self.processor: Any = JointAttentionProcessor()

    def heads_of(self, fused: Tensor) -> tuple[Tensor, ...]:
        """`(B, m, k·heads·head_dim)` → k tensors `(B, m, heads, head_dim)`."""
        head_dim = self.norm_q.normalized_shape[0]
        return fused.unflatten(-1, (-1, self.heads, head_dim)).unbind(-3)

    def reference_key_value(self, feature: Tensor) -> Tensor:
        """Reference feature `(B, n, width)` → `(B, n, 2, heads, head_dim)`; no queries are computed.

        The feature is normed and modulated already, and its keys are not rotated.
        """
        queries = self.to_out.in_features
        # An adapter or a quantised layer in its place has no way to leave rows out.
        fused = self.to_qkv(feature, queries) if isinstance(self.to_qkv, FusedLinear) else self.to_qkv(feature)
        key, value = self.heads_of(fused)[-2:]
        return torch.stack([self.norm_k(key), value], -3)

    def forward(
        self, video: Tensor, text: Tensor, rotary: Rotary, joining: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """Video `(B, T, n, width)` and text `(B, L, width)` → outputs for both.

        joining: keys and values `(B, m, 2, heads, head_dim)` of further tokens, which have no outputs.
        """
        return self.processor(self, video, text, rotary, joining)


class CrossAttentionProcessor:
    """Attention of the video tokens of each latent frame to the tokens of a condition.

    It has no parallel configuration: with the tokens of every latent frame spread over several devices it stays local.
    """

    _attention_backend = None

    def __call__(
        self, attn: "CrossAttention", video: Tensor, key_value: Tensor, rotary: Rotary, norm_q: nn.Module
    ) -> Tensor:
        query, key, value = attn.query_key_value(video, key_value, rotary, norm_q)
        out = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return attn.to_out(out.flatten(2).reshape(*video.shape[:-1], -1))


class FoldedCrossAttentionProcessor(CrossAttentionProcessor):
    """The same with the values projected before they are weighted: fewer operations where tokens are few.

    Projecting afterwards takes heads·head_dim products a video token and output, projecting before takes heads·m of
    them. Attention kernels know nothing of it, so the probabilities are written out, `n·heads·m` numbers a latent
    frame. A layer whose output projection was replaced (an adapter) or quantised attends in the plain way.
    """

    def __call__(
        self, attn: "CrossAttention", video: Tensor, key_value: Tensor, rotary: Rotary, norm_q: nn.Module
    ) -> Tensor:
        if not (isinstance(attn.to_out, OutputLinear) and type(attn.to_out.weight) is nn.Parameter):
            return super().__call__(attn, video, key_value, rotary, norm_q)
        query, key, value = attn.query_key_value(video, key_value, rotary, norm_q)
        scores = torch.matmul(query.transpose(1, 2) * query.shape[-1] ** -0.5, key.permute(0, 2, 3, 1))
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        return attn.to_out(weights.transpose(1, 2).flatten(2), value).reshape(*video.shape[:-1], -1)


class CrossAttention(nn.Module, AttentionModuleMixin):
    """Cross-attention from video tokens to face or speech tokens (paper: face attention, audio attention).

    Queries and keys are normed by the layer's joint attention, whose norms are handed in; queries are rotated with the
    positions of the first latent frame, keys are not.
    """

    _default_processor_cls: Any = CrossAttentionProcessor
    _available_processors: list[Any] = [CrossAttentionProcessor, FoldedCrossAttentionProcessor]  # noqa: RUF012
    _supports_qkv_fusion = False
    is_cross_attention = True

    def __init__(self, width: int, heads: int, head_dim: int, token_dim: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, heads * head_dim)
        self.to_kv = nn.Linear(token_dim, 2 * heads * head_dim)
        self.to_out = OutputLinear(heads * head_dim, width)
        start_at_zero(self.to_out)
        self.processor: Any = CrossAttentionProcessor()

    def key_value(self, tokens: Tensor, norm_k: nn.Module) -> Tensor:
        """Tokens `(B, g, m, token_dim)` → `(B, g, m, 2, heads, head_dim)`."""
        return normed_key_value(self.to_kv(tokens), self.heads, norm_k)

    def query_key_value(
        self, video: Tensor, key_value: Tensor, rotary: Rotary, norm_q: nn.Module
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries `(B·g, T/g·n, heads, head_dim)`, keys and values `(B·g, m, heads, head_dim)`."""
        batch, frames, tokens, _ = video.shape
        groups = key_value.shape[1]
        query = norm_q(self.to_q(video).unflatten(-1, (self.heads, -1)))
        query = rotate(query.flatten(0, 1), (rotary[0][0], rotary[1][0]))
        # Frames with the same keys attend together.
        query = query.reshape(batch * groups, frames // groups * tokens, *query.shape[2:])
        key, value = key_value.expand(batch, *key_value.shape[1:]).flatten(0, 1).unbind(2)
        return query, key, value

    def fold(self, folded: bool) -> None:
        """Chooses between projecting the values before they are weighted, and projecting the result (as published)."""
        backend = self.processor._attention_backend
        self.processor = (FoldedCrossAttentionProcessor if folded else CrossAttentionProcessor)()
        self.processor._attention_backend = backend

    def forward(self, video: Tensor, key_value: Tensor, rotary: Rotary, norm_q: nn.Module) -> Tensor:
        """Video `(B, T, n, width)` → `(B, T, n, width)`; `g` is T (own tokens for each latent frame) or 1 (shared)."""
        return self.processor(self, video, key_value, rotary, norm_q)


class JoiningTokens(nn.Module):
    """Speech tokens of each latent frame as further tokens of the joint attention (paper 3.2, self-attention).

    They are narrower than the network, so every layer has its own keys and values of them; keys are normed like all
    others and rotated to the time of their latent frame (row and column 0). They ask nothing: there are no queries, and
    no outputs. Values start at zero; as keys they still take their share of the attention, which nothing can start at
    zero.
    """

    def __init__(self, heads: int, head_dim: int, token_dim: int):
        super().__init__()
        self.heads = heads
        self.to_kv = nn.Linear(token_dim, 2 * heads * head_dim)
        nn.init.zeros_(self.to_kv.bias)
        with torch.no_grad():
            self.to_kv.weight[heads * head_dim :] = 0

    def key_value(self, tokens: Tensor, norm_k: nn.Module) -> Tensor:
        """Tokens `(B, T, m, token_dim)` → `(B, T, m, 2, heads, head_dim)`, not rotated yet."""
        return normed_key_value(self.to_kv(tokens), self.heads, norm_k)

    def forward(self, key_value: Tensor, rotary: Rotary) -> Tensor:
        """`(B, T, m, 2, heads, head_dim)` → `(B, T·m, 2, heads, head_dim)`, rotated."""
        tokens = key_value.shape[2]
        # The first video token of a latent frame is at row and column 0, where only time turns.
        cos, sin = (table[:, :1].expand(-1, tokens, -1).flatten(0, 1) for table in rotary)
        key, value = key_value.flatten(1, 2).unbind(2)
        return torch.stack([rotate(key, (cos, sin)), value], 2)
