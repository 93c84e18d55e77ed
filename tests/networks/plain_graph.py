"""The denoiser as a plain function of published tensors, written from its description, independent of the package."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def rotations(head: int, frames: int, rows: int, columns: int) -> Tensor:
    """Unit complex numbers `(frames, rows·columns, head/2)`."""

    def angles(size: int, width: int) -> Tensor:
        return torch.arange(size)[:, None] * 10000.0 ** (-torch.arange(0, width, 2) / width)

    parts = angles(frames, head // 4), angles(rows, 3 * head // 8), angles(columns, 3 * head // 8)
    table = torch.empty(frames, rows, columns, head // 2)
    table[..., : head // 8] = parts[0][:, None, None]
    table[..., head // 8 : 5 * head // 16] = parts[1][None, :, None]
    table[..., 5 * head // 16 :] = parts[2][None, None]
    return torch.polar(torch.ones(()), table.flatten(1, 2))


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """`(..., m, head)` by `(m, head/2)`."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)


class PlainGraph:
    def __init__(self, weights: dict[str, Tensor], heads: int):
        self.w, self.heads = weights, heads
        self.layers = sum(name.endswith(".input_layernorm.weight") for name in weights)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def attend(self, i: int, out: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = F.scaled_dot_product_attention(q, k, v)
        return linear(self.w, f"transformer.layers.{i}.{out}", mixed.transpose(-2, -3).flatten(-2))

    def head_norm(self, i: int, which: str, x: Tensor) -> Tensor:
        return norm(self.w, f"mixins.adaln_layer.{which}_layernorm_list.{i}", x, 1e-6)

    def speech_tokens(self, windows: Tensor) -> Tensor:
        w, name = self.w, "transformer.audio_proj."
        x = linear(w, name + "proj1", windows.flatten(2)).relu()
        x = linear(w, name + "proj3", linear(w, name + "proj2", x).relu())
        for _ in range(2):
            pairs = x[:, 1:].unflatten(1, (-1, 2))
            halved = torch.einsum("bfki,oik->bfo", pairs, w[name + "conv1.weight"]) + w[name + "conv1.bias"]
            x = torch.cat([x[:, :1], halved], 1)
        return norm(w, name + "norm", x.unflatten(-1, (-1, len(w[name + "norm.weight"]))))

    def face_tokens(self, embedding: Tensor, frames: int) -> Tensor:
        name = "transformer.face_proj."
        x = linear(self.w, name + "proj", embedding).unflatten(-1, (-1, len(self.w[name + "norm.weight"])))
        return norm(self.w, name + "norm", x)[:, None].expand(-1, frames, -1, -1)

    def cross(self, i: int, name: str, video: Tensor, tokens: Tensor, turns: Tensor) -> Tensor:
        prefix = f"transformer.layers.{i}.{name}_"
        q = self.split(linear(self.w, prefix + "attn.query", norm(self.w, prefix + "input_layernorm", video)))
        k, v = map(self.split, linear(self.w, prefix + "attn.key_value", tokens).chunk(2, -1))
        q, k = self.head_norm(i, "query", q), self.head_norm(i, "key", k)
        return video + self.attend(i, f"{name}_attn.dense", rotate(q, turns[0]), k, v)

    def joint(self, i: int, text: Tensor, video: Tensor, reference: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([text, video.flatten(1, 2), reference], 1)
        qkv = linear(self.w, f"transformer.layers.{i}.attention.query_key_value", x)
        q, k, v = map(self.split, qkv.chunk(3, -1))
        q, k = self.head_norm(i, "query", q), self.head_norm(i, "key", k)
        still = torch.ones(text.shape[1], turns.shape[-1]), torch.ones(reference.shape[1], turns.shape[-1])
        turns = torch.cat([still[0].to(turns.dtype), turns.flatten(0, 1), still[1].to(turns.dtype)])
        out = self.attend(i, "attention.dense", rotate(q, turns), rotate(k, turns), v)
        words, video_tokens = text.shape[1], video.shape[1] * video.shape[2]
        return out[:, :words], out[:, words : words + video_tokens].unflatten(1, video.shape[1:3])

    def layer(self, i, text, video, temb, reference, face, speech, turns):
        w, prefix = self.w, f"transformer.layers.{i}."
        m = linear(w, f"mixins.adaln_layer.adaLN_modulations.{i}.1", temb)[:, None].chunk(12, -1)
        m = [x[:, None] for x in m[:6]] + list(m[6:])
        text_in = norm(w, prefix + "input_layernorm", text) * (1 + m[7]) + m[6]
        video_in = norm(w, prefix + "input_layernorm", video) * (1 + m[1]) + m[0]
        text_out, video_out = self.joint(i, text_in, video_in, reference, turns)
        text, video = text + m[8] * text_out, video + m[2] * video_out
        video = self.cross(i, "face", video, face, turns)
        video = self.cross(i, "audio", video, speech, turns)
        done = []
        for x, (shift, scale, gate) in ((text, m[9:]), (video, m[3:6])):
            y = norm(w, prefix + "post_attention_layernorm", x) * (1 + scale) + shift
            y = F.gelu(linear(w, prefix + "mlp.dense_h_to_4h", y), approximate="tanh")
            done.append(x + gate * linear(w, prefix + "mlp.dense_4h_to_h", y))
        return done

    @torch.no_grad()
    def __call__(self, latents, timestep, text, *, speech, face, reference):
        w = self.w
        kernel = w["mixins.patch_embed.proj.weight"]
        batch, frames, _, height, width = latents.shape
        rows, columns, words = height // 2, width // 2, text.shape[1]
        patches = latents.unflatten(-1, (columns, 2)).unflatten(3, (rows, 2)).permute(0, 1, 3, 5, 2, 4, 6)
        video = patches.flatten(4).flatten(2, 3) @ kernel.flatten(1).T + w["mixins.patch_embed.proj.bias"]
        positions = w["mixins.pos_embed.pos_embedding"][:, : words + frames * rows * columns]
        text = linear(w, "mixins.patch_embed.text_proj", text) + positions[:, :words]
        video = video + positions[:, words:].unflatten(1, (frames, -1))
        half = kernel.shape[0] // 2
        angles = timestep[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
        temb = linear(w, "time_embed.0", torch.cat([angles.cos(), angles.sin()], -1))
        temb = F.silu(linear(w, "time_embed.2", F.silu(temb)))
        speech, face = self.speech_tokens(speech), self.face_tokens(face, frames)
        turns = rotations(kernel.shape[0] // self.heads, frames, rows, columns)
        for i in range(self.layers):
            text, video = self.layer(i, text, video, temb, reference[i], face, speech, turns)
        shift, scale = linear(w, "mixins.final_layer.adaLN_modulation.1", temb)[:, None, None].chunk(2, -1)
        video = norm(w, "transformer.final_layernorm", video)
        video = norm(w, "mixins.final_layer.norm_final", video, 1e-6) * (1 + scale) + shift
        out = linear(w, "mixins.final_layer.linear", video).unflatten(-1, (-1, 2, 2)).unflatten(2, (rows, columns))
        return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, frames, -1, height, width)
