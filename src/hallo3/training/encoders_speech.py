"""The embedded bundle's speech encoder: a small wav2vec2 that learns what the mouth does.

The published system takes wav2vec2-base-960h, which learned speech from 960 hours. The embedded bundle's encoder has
the same form (spec section 4: 7 convolutions, features resampled to one per video frame, 12 layers) at a width of 32,
and an objective of its own. From the outputs of layers 4, 8 and 12, linear heads predict, for every video frame: how
far the mouth is open, how wide it is, how loud the speech is, and the class of the phone. Three layers are supervised
so that many of the 12 that the denoiser sees carry the mouth.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from hallo3.conditions.speech import encode_speech
from hallo3.errors import UserError
from hallo3.training.encoders_run import train_encoder, write_metrics
from hallo3.training.loop import Log, LoopSettings, StepRandom

SAMPLES_PER_FRAME = 640
SUPERVISED_LAYERS = (3, 7, 11)
CLIP_FRAMES = 49
UNKNOWN_PHONE = -100  # cross entropy passes over it


@dataclass(frozen=True)
class Recording:
    """Speech with what the mouth does in it.

    Attributes:
        name: The file's name without ending; decides whether the recording is held out.
        samples: `(n,)` float32 at 16 kHz.
        opening, width, loudness: `(frames,)` in 0…1 at 25 frames per second.
        phone: `(frames,)` class of the phone, `UNKNOWN_PHONE` where nobody knows.
    """

    name: str
    samples: np.ndarray
    opening: np.ndarray
    width: np.ndarray
    loudness: np.ndarray
    phone: np.ndarray

    @property
    def frames(self) -> int:
        return len(self.opening)


def speech_config(hidden_size: int = 32, intermediate_size: int = 80, conv_dim: int = 32) -> Wav2Vec2Config:
    """wav2vec2-base's form (same kernels and strides, group norm), small; no dropout, as the batches are augmented."""
    return Wav2Vec2Config(
        hidden_size=hidden_size,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=intermediate_size,
        conv_dim=(conv_dim,) * 7,
        conv_bias=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        initializer_range=0.06,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
        output_hidden_size=hidden_size,
    )


def feature_extractor() -> Wav2Vec2FeatureExtractor:
    """Zero mean and unit variance at 16 kHz, as the published system's."""
    return Wav2Vec2FeatureExtractor(feature_size=1, sampling_rate=16000, do_normalize=True)


class ArticulationHeads(nn.Module):
    """Linear readings of the supervised layers: opening, width, loudness and phone classes."""

    def __init__(self, channels: int, phone_classes: int):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(channels, 3 + phone_classes) for _ in SUPERVISED_LAYERS)

    def forward(self, layers: Tensor) -> Tensor:
        """`(B, frames, 12, c)` → `(3 layers, B, frames, 3 + classes)`."""
        chosen = zip(self.heads, SUPERVISED_LAYERS, strict=True)
        return torch.stack([head(layers[:, :, index]) for head, index in chosen])


def layer_outputs(encoder: Wav2Vec2Model, values: Tensor, frames: int) -> Tensor:
    """Outputs of every layer for normalised speech, one per video frame (spec section 4.3), with gradients.

    Args:
        values: `(B, samples)`, zero mean and unit variance.
        frames: Video frames the convolutional features are resampled to.

    Returns:
        `(B, frames, layers, c)`.
    """
    features = encoder.feature_extractor(values)
    features = F.interpolate(features, size=frames, mode="linear", align_corners=True)
    hidden, _ = encoder.feature_projection(features.transpose(1, 2))
    outputs: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: outputs.append(call[2])) for layer in encoder.encoder.layers]
    try:
        encoder.encoder(hidden)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(outputs, dim=2)


def load_recordings(folder: Path, most: int | None = None) -> list[Recording]:
    """The first `most` recordings of a folder of `.npz` files of `studio.speech_clips.write_speech`, sorted by name."""
    recordings = []
    for path in sorted(folder.glob("*.npz"))[:most]:
        with np.load(path) as data:
            phone = data["phone_class"].astype(np.int64)
            recordings.append(
                Recording(
                    name=path.stem,
                    samples=data["samples"].astype(np.float32),
                    opening=data["opening"].astype(np.float32),
                    width=data["width"].astype(np.float32),
                    loudness=data["loudness"].astype(np.float32),
                    phone=np.where(phone < 0, UNKNOWN_PHONE, phone),
                )
            )
    if not recordings:
        raise UserError(f"{folder}: no .npz recordings there; draw them first (python -m hallo3.training.embedded)")
    return recordings


def draw_crop(recording: Recording, frames: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """A stretch of speech with its targets: played a little faster or slower, sometimes noisy, padded with zeros.

    The stretch starts on a video frame; `known` is 0 in the padding.
    """
    speed = float(random.uniform(0.88, 1.14)) if random.random() < 0.5 else 1.0
    wanted = min(recording.frames, round(frames * speed))
    first = int(random.integers(0, recording.frames - wanted + 1))
    length = min(frames, round(wanted / speed))
    samples = recording.samples[first * SAMPLES_PER_FRAME : (first + wanted) * SAMPLES_PER_FRAME]
    samples = np.pad(samples, (0, max(0, wanted * SAMPLES_PER_FRAME - len(samples))))
    if speed != 1.0:
        places = np.linspace(0, len(samples) - 1, length * SAMPLES_PER_FRAME)
        samples = np.interp(places, np.arange(len(samples)), samples).astype(np.float32)
    at = np.linspace(0, wanted - 1, length)
    pad = (0, frames - length)

    def track(values: np.ndarray) -> np.ndarray:
        return np.pad(np.interp(at, np.arange(wanted), values[first : first + wanted]), pad)

    return {
        "values": np.pad(augment(samples, random), (0, frames * SAMPLES_PER_FRAME - len(samples))),
        "opening": track(recording.opening),
        "width": track(recording.width),
        "loudness": track(recording.loudness),
        "phone": np.pad(recording.phone[first + np.round(at).astype(int)], pad, constant_values=UNKNOWN_PHONE),
        "known": np.pad(np.ones(length), pad),
    }


def augment(samples: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Another microphone and room: a tilted spectrum and some noise; then zero mean and unit variance."""
    samples = samples / max(float(samples.std()), 1e-5)
    if random.random() < 0.5:
        tilt = float(random.uniform(-0.4, 0.4))
        samples = samples + tilt * np.concatenate([[0], samples[:-1]]).astype(np.float32)
    if random.random() < 0.5:
        noise = random.standard_normal(len(samples)).astype(np.float32)
        if random.random() < 0.5:  # low noise, as of a room
            noise = np.convolve(noise, np.ones(8, np.float32) / 8**0.5, "same")
        samples = samples + noise * 10 ** (-float(random.uniform(15, 45)) / 20)
    return ((samples - samples.mean()) / max(float(samples.std()), 1e-5)).astype(np.float32)


def draw_batch(recordings: list[Recording], total_frames: int, random: np.random.Generator) -> dict[str, Tensor]:
    """Crops of 1, 2, 4 or 8 clips' length, about `total_frames` video frames together."""
    frames = CLIP_FRAMES * int(random.choice([1, 2, 4, 8], p=[0.4, 0.3, 0.2, 0.1]))
    count = max(1, total_frames // frames)
    lengths = np.array([recording.frames for recording in recordings], np.float64)
    chosen = random.choice(len(recordings), count, p=lengths / lengths.sum())
    crops = [draw_crop(recordings[index], frames, random) for index in chosen]
    batch = {name: torch.from_numpy(np.stack([crop[name] for crop in crops])) for name in crops[0]}
    return {name: value.float() if name != "phone" else value.long() for name, value in batch.items()}


def articulation_loss(predicted: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Squared errors of the three tracks plus cross entropy of the phones, over the supervised layers.

    Args:
        predicted: `(3, B, frames, 3 + classes)` of `ArticulationHeads`.
        batch: Targets `(B, frames)` of `draw_batch`.
    """
    known = batch["known"]
    tracks = torch.stack([batch["opening"], batch["width"], batch["loudness"]], -1)
    weight = torch.tensor([20.0, 20.0, 5.0], device=tracks.device)  # variances of 0.05…0.1; loudness matters less
    squared = ((predicted[..., :3] - tracks) ** 2 * weight * known[..., None]).sum((1, 2)) / known.sum()
    phones = predicted[..., 3:].flatten(0, 2)
    target = batch["phone"].expand(len(predicted), -1, -1).flatten()
    total = squared.sum(-1).mean()
    numbers = {"opening": float(squared[-1, 0].detach()), "width": float(squared[-1, 1].detach())}
    if (target != UNKNOWN_PHONE).any():
        entropy = F.cross_entropy(phones, target, ignore_index=UNKNOWN_PHONE)
        numbers["phone"] = float(entropy.detach())
        total = total + 0.3 * entropy
    return total, numbers


def train_speech(
    data: Path,
    out: Path,
    settings: LoopSettings,
    *,
    held_out: Path | None = None,
    most: int | None = None,
    config: Wav2Vec2Config | None = None,
    batch_frames: int = CLIP_FRAMES * 16,
    device: str = "cpu",
    log: Log = print,
) -> dict[str, Any]:
    """Trains the speech encoder and writes `speech_encoder/`, `feature_extractor/` and its metrics.

    Args:
        data: Folder of recordings (`load_recordings`).
        held_out: Folder of recordings to measure on; without it every tenth of `data` is held out.
        most: Recordings used, first by name; all if None.
        out: Folder of parts; the checkpoint lies in `out/checkpoints/speech`.
        batch_frames: Video frames per step, over all crops.

    Returns:
        The metrics of `evaluate_speech` on the held-out recordings.
    """
    recordings = load_recordings(data, most)
    training, tested = (recordings, load_recordings(held_out)) if held_out else split(recordings)
    classes = 1 + max(int(recording.phone.max()) for recording in training + tested)
    torch.manual_seed(settings.seed)
    # Kept in evaluation mode: no dropout is wanted, and in training mode the class asks for gradients of its input.
    encoder = Wav2Vec2Model(config or speech_config()).eval()
    heads = ArticulationHeads(encoder.config.hidden_size, max(classes, 1))
    both = nn.ModuleDict({"encoder": encoder, "heads": heads}).to(device)

    def step_loss(step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        batch = draw_batch(training, batch_frames, random.numpy)
        batch = {name: value.to(device) for name, value in batch.items()}
        layers = layer_outputs(encoder, batch["values"], batch["known"].shape[1])
        return articulation_loss(heads(layers), batch)

    train_encoder(both, step_loss, out / "checkpoints" / "speech", settings, log)
    encoder.save_pretrained(out / "speech_encoder")
    feature_extractor().save_pretrained(out / "feature_extractor")
    torch.save(heads.state_dict(), out / "checkpoints" / "speech" / "heads.pt")
    metrics = evaluate_speech(encoder, heads, tested)
    write_metrics(out / "speech_encoder", metrics, log)
    return metrics


def split(recordings: list[Recording]) -> tuple[list[Recording], list[Recording]]:
    """Recordings to learn from and every tenth, held out."""
    held_out = set(range(9, len(recordings), 10)) or {len(recordings) - 1}
    return [r for i, r in enumerate(recordings) if i not in held_out], [recordings[i] for i in sorted(held_out)]


@torch.no_grad()
def evaluate_speech(encoder: Wav2Vec2Model, heads: ArticulationHeads, recordings: list[Recording]) -> dict[str, Any]:
    """Correlations of predicted and true tracks over whole recordings, and phone accuracy, per supervised layer."""
    device = next(encoder.parameters()).device
    columns: dict[str, list[np.ndarray]] = {"opening": [], "width": [], "phone": [], "known": []}
    medians = []
    for recording in recordings:
        features = encode_speech(recording.samples, encoder, feature_extractor())
        assert isinstance(features, Tensor)
        layers = features[None].to(device)
        predicted = heads(layers)[:, 0, : recording.frames].cpu().numpy()
        medians.append(correlation(predicted[-1, :, 0], recording.opening))
        columns["opening"].append(np.concatenate([predicted[:, :, 0], recording.opening[None]]))
        columns["width"].append(np.concatenate([predicted[:, :, 1], recording.width[None]]))
        columns["phone"].append(predicted[:, :, 3:].argmax(-1) == recording.phone)
        columns["known"].append(recording.phone != UNKNOWN_PHONE)
    known = np.concatenate(columns["known"])
    right = np.concatenate(columns["phone"], axis=1)[:, known]
    metrics: dict[str, Any] = {
        "held_out_recordings": len(recordings),
        "held_out_frames": len(known),
        "opening_correlation_median": float(np.median(medians)),
        "opening_correlation_worst": float(np.min(medians)),
    }
    for row, layer in enumerate(SUPERVISED_LAYERS):
        for name in ("opening", "width"):
            pooled = np.concatenate(columns[name], axis=1)
            metrics[f"layer_{layer + 1}_{name}_correlation"] = correlation(pooled[row], pooled[-1])
        if known.any():
            metrics[f"layer_{layer + 1}_phone_accuracy"] = float(right[row].mean())
    return metrics


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two tracks; 0 if one of them stands still."""
    if a.std() < 1e-6 or b.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
