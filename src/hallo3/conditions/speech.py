"""Speech → features of a wav2vec2 encoder, one row per video frame → windows of a clip (spec sections 4 and 6).

The encoder's convolutional features are resampled to the video's frame rate *before* its transformer; what counts is
the output of each of its layers. The whole recording is encoded at once up to a minute. A longer one is encoded in
overlapping chunks, when their rows are asked for, so that memory does not grow with its length. The chunks share the
whole recording's level, group norm and frame positions; only the transformer hears less around them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from .placement import execution_device

SAMPLE_RATE = 16_000
FPS = 25
_BLOCK = 1 << 20  # samples looked at together when a long recording is measured


def num_video_frames(num_samples: int, fps: int = FPS) -> int:
    """Frames that cover `num_samples` of 16 kHz speech: ceil(seconds · fps), in whole numbers so that it is exact."""
    return -(-num_samples * fps // SAMPLE_RATE)


def num_clips(frames: int, num_frames: int = 49, motion_frames: int = 2) -> int:
    """Clips that `frames` video frames need; each adds `num_frames − motion_frames`, none lies wholly past the end."""
    return -(-frames // (num_frames - motion_frames))


def encode_speech(
    samples: NDArray[np.float32],
    speech_encoder: Wav2Vec2Model,
    feature_extractor: Wav2Vec2FeatureExtractor,
    *,
    fps: int = FPS,
    num_frames: int = 49,
    whole_seconds: float = 60.0,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> "Tensor | ChunkedSpeech":
    """Speech features, one row per video frame.

    The published code pads the recording with silence until its frames are a multiple of a clip's, which changes every
    feature: so do we. The result has `padded ≥ num_video_frames(len(samples))` rows.

    Args:
        samples: `(n,)` mono at 16 kHz.
        speech_encoder: In evaluation mode.
        feature_extractor: Says whether the encoder expects zero mean and unit variance.
        num_frames: Frames of a clip.
        whole_seconds: Longest recording that is encoded at once; also the length of a longer one's chunks.
        device, dtype: Of the computation and of the result; the encoder's own by default.

    Returns:
        `(padded, layers, c)`: a tensor, or for a recording longer than `whole_seconds` a `ChunkedSpeech`, which gives
        tensors when it is sliced and uses the encoder then.
    """
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(f"samples must be (n,) with n > 0, not {samples.shape}")
    if speech_encoder.training:
        raise ValueError("speech_encoder is in training mode: its random layer drops would spoil the features")
    recording = _Recording.of(samples, feature_extractor, fps, num_frames)
    device, dtype = device or execution_device(speech_encoder), dtype or speech_encoder.dtype
    encoder = _Encoder(speech_encoder, recording, device, dtype)
    if len(samples) <= whole_seconds * SAMPLE_RATE:
        return encoder.whole()
    context = int(whole_seconds * fps)
    return ChunkedSpeech(encoder, core=context - 2 * (context // 6), margin=context // 6)


@dataclass(frozen=True)
class _Recording:
    """A waveform as the encoder takes it: levelled, then padded with zeros. samples: the raw (n,)."""

    samples: NDArray[np.float32]
    mean: float
    deviation: float
    frames: int  # with the padding
    length: int  # samples, with the padding

    @classmethod
    def of(
        cls, samples: NDArray[np.float32], extractor: Wav2Vec2FeatureExtractor, fps: int, num_frames: int
    ) -> "_Recording":
        frames = num_video_frames(len(samples), fps)
        padding = -frames % num_frames
        mean, variance = _moments(samples) if extractor.do_normalize else (0.0, 1.0 - 1e-7)
        # The extractor's own formula; computed here in blocks, for its copies of an hour of speech are large.
        deviation = float(np.sqrt(variance + 1e-7))
        return cls(samples, mean, deviation, frames + padding, len(samples) + padding * SAMPLE_RATE // fps)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Samples start…stop of the levelled and padded waveform."""
        levelled = (self.samples[start:stop] - np.float32(self.mean)) / np.float32(self.deviation)
        return np.pad(levelled, (0, stop - start - len(levelled)))


def _moments(samples: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and variance, in double precision and constant memory."""
    blocks = [samples[i : i + _BLOCK] for i in range(0, len(samples), _BLOCK)]
    mean = sum(float(block.sum(dtype=np.float64)) for block in blocks) / len(samples)
    square = sum(float(np.square(block - mean, dtype=np.float64).sum()) for block in blocks)
    return mean, square / len(samples)


@dataclass(frozen=True)
class _Encoder:
    """A wav2vec2 encoder bound to one recording."""

    model: Wav2Vec2Model
    recording: _Recording
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def _convolutions(self) -> tuple[int, int, int]:
        """Features of the whole recording, samples from one to the next, samples that one sees."""
        count, stride, seen = self.recording.length, 1, 1
        for kernel, step in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            count, seen, stride = (count - kernel) // step + 1, seen + (kernel - 1) * stride, stride * step
        return count, stride, seen

    @cached_property
    def group_statistics(self) -> tuple[Tensor, Tensor] | None:
        """What a group norm needs: mean and variance over the whole recording of the first convolution's channels.

        A convolution's output is linear in the waveform, so the waveform's own first and second moments at the
        kernel's lags give them exactly, without computing it.
        """
        if self.model.config.feat_extract_norm != "group":
            return None
        convolution = _first_convolution(self.model).conv
        kernel, step = convolution.kernel_size[0], convolution.stride[0]
        count = (self.recording.length - kernel) // step + 1
        first, second = np.zeros(kernel), np.zeros((kernel, kernel))
        for start in range(0, count, _BLOCK // step):
            stop = min(start + _BLOCK // step, count)
            wave = self.recording.read(start * step, (stop - 1) * step + kernel)
            lagged = np.lib.stride_tricks.sliding_window_view(wave, kernel)[::step].astype(np.float64)
            first, second = first + lagged.sum(0), second + lagged.T @ lagged
        first, second = first / count, second / count
        weight = convolution.weight.detach().double().cpu().numpy()[:, 0]
        bias = 0.0 if convolution.bias is None else convolution.bias.detach().double().cpu().numpy()
        variance = np.einsum("ci,ij,cj->c", weight, second - np.outer(first, first), weight)
        return torch.from_numpy(weight @ first + bias), torch.from_numpy(variance)

    def whole(self) -> Tensor:
        """Features of all frames, (frames, layers, c), as the published code computes them."""
        size = self.recording.frames
        resample = partial(nn.functional.interpolate, size=size, mode="linear", align_corners=True)
        return self._run(self.recording.read(0, self.recording.length), resample, None)

    def rows(self, start: int, stop: int) -> Tensor:
        """Features of frames start…stop, (stop − start, layers, c), of which the transformer hears no others."""
        count, stride, seen = self._convolutions
        positions = np.arange(start, stop) * ((count - 1) / max(self.recording.frames - 1, 1))  # ends on ends
        first, last = int(positions[0]), min(int(positions[-1]) + 1, count - 1)
        wave = self.recording.read(first * stride, last * stride + seen)
        return self._run(wave, partial(_resample, places=torch.from_numpy(positions - first)), self.group_statistics)

    @torch.no_grad()
    def _run(
        self, wave: NDArray[np.float32], resample: "partial[Tensor]", statistics: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        with _hooked(self.model, resample, statistics) as layers:
            self.model(torch.from_numpy(wave)[None].to(self.device, self.model.dtype))
        return torch.cat(layers).transpose(0, 1).to(self.device, self.dtype)


def _first_convolution(model: Wav2Vec2Model) -> Any:
    """The block with the first convolution, `conv`, and its `layer_norm`."""
    return model.feature_extractor.conv_layers[0]


@contextmanager
def _hooked(
    model: Wav2Vec2Model, resample: "partial[Tensor]", statistics: tuple[Tensor, Tensor] | None
) -> Iterator[list[Tensor]]:
    """Lets a call of `model` resample its convolutional features and leave each layer's output (1, rows, c) in a list.

    By hooks, and not by calling its parts, so that offloading moves the model as it does for any call.
    """
    layers: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _, __, output: layers.append(output)) for layer in model.encoder.layers
    ]
    handles.append(model.feature_extractor.register_forward_hook(lambda _, __, output: resample(output)))
    if statistics is not None:
        norm = _first_convolution(model).layer_norm
        handles.append(norm.register_forward_hook(lambda _, inputs, __: _normalise(norm, inputs[0], *statistics)))
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def _resample(features: Tensor, places: Tensor) -> Tensor:
    """(1, c, n) read at fractional places, linearly → (1, c, places)."""
    left = places.long().clamp(max=features.shape[-1] - 1).to(features.device)
    right = (left + 1).clamp(max=features.shape[-1] - 1)
    weight = (places - places.floor()).to(features)
    return torch.lerp(features[..., left], features[..., right], weight)


def _normalise(norm: nn.GroupNorm, features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """What a group norm with one channel a group computes, from given statistics."""
    scale = norm.weight.double().cpu() / (variance + norm.eps).sqrt()
    shift = norm.bias.double().cpu() - mean * scale
    return features * scale.to(features)[:, None] + shift.to(features)[:, None]


class ChunkedSpeech:
    """Speech features of a long recording, encoded when they are asked for: `features[a:b]` → (b − a, layers, c).

    Chunks lie at fixed places, so the same rows are the same numbers in whatever order they are read. The last two
    chunks are kept.

    Against whole encoding, 150 s of speech in chunks of a minute differ by 4 % of the largest feature (5 % of the
    features' own variation) with a trained small encoder: the transformer hears a minute, not everything.
    """

    def __init__(self, encoder: _Encoder, core: int, margin: int) -> None:
        """core: rows a chunk gives; margin: further rows that its transformer hears on either side."""
        self._encoder, self._core, self._margin = encoder, core, margin
        self._chunks: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._encoder.recording.frames

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, step = rows.indices(len(self))
        if step != 1 or stop <= start:
            raise IndexError(f"rows {start}…{stop} in steps of {step}: only forward, and at least one")
        pieces = []
        for index in range(start // self._core, (stop - 1) // self._core + 1):
            chunk, offset = self._chunk(index), index * self._core
            pieces.append(chunk[max(start - offset, 0) : stop - offset])
        return torch.cat(pieces)

    def _chunk(self, index: int) -> Tensor:
        if index not in self._chunks:
            while len(self._chunks) > 1:
                del self._chunks[next(iter(self._chunks))]
            first, last = index * self._core, min((index + 1) * self._core, len(self))
            start, stop = max(first - self._margin, 0), min(last + self._margin, len(self))
            heard = self._encoder.rows(start, stop)
            self._chunks[index] = heard[first - start : last - start].clone()
        return self._chunks[index]


class SpeechWindows:
    """Each frame's features with its neighbours': `windows[a:b]` → (b − a, window, layers, c), made when asked for.

    A window reaches `window // 2` frames to either side; at the ends of the recording the end row is repeated.
    """

    def __init__(self, features: Tensor | ChunkedSpeech, window: int = 5) -> None:
        self._features, self._reach = features, window // 2

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, frames: slice) -> Tensor:
        start, stop, _ = frames.indices(len(self))
        low, high = max(start - self._reach, 0), min(stop + self._reach, len(self))
        rows = self._features[low:high]
        reach = torch.arange(-self._reach, self._reach + 1)
        indices = (torch.arange(start, stop)[:, None] + reach).clamp(0, len(self) - 1) - low
        return rows[indices.to(rows.device)]


def speech_windows(features: Tensor | ChunkedSpeech, window: int = 5) -> SpeechWindows:
    """Windows of `window` (odd) frames around every frame, of what `encode_speech` returned; `[:]` gives them all."""
    return SpeechWindows(features, window)


def clip_windows(windows: SpeechWindows | Tensor, clip: int, num_frames: int = 49, motion_frames: int = 2) -> Tensor:
    """The windows of one clip: of its motion frames, then of the frames that it adds (spec section 6).

    Args:
        windows: `(frames, window, layers, c)`, of the padded recording.
        clip: From 0 to `num_clips(...) − 1`; its frames are c·(N−k) − k … c·(N−k) + N−k − 1.

    Returns:
        `(num_frames, window, layers, c)`; zeros before the recording's start, its last window repeated after its end.
    """
    start = clip * (num_frames - motion_frames) - motion_frames
    if clip < 0 or start + motion_frames >= len(windows):
        raise IndexError(f"clip {clip} lies wholly outside {len(windows)} frames of speech")
    inside = windows[max(start, 0) : min(start + num_frames, len(windows))]
    before = inside.new_zeros(max(-start, 0), *inside.shape[1:])
    after = inside[-1:].expand(num_frames - len(before) - len(inside), *inside.shape[1:])
    return torch.cat([before, inside, after])
