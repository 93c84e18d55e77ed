"""Training of the face encoder: the same person or not.

Two crops of one person lie close, crops of others far apart (InfoNCE, arXiv 1807.03748, on cosines). Drawn people are
seen from several sides, in several lights, with several mouths; a photographed person is one photograph, recoloured,
turned, blurred and covered. Training ends by making every number zero mean and unit variance over the training faces.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hallo3.networks.faces import CROP_MARGIN, FaceEncoder
from hallo3.training.encoders_images import FaceImage, blur, cover, recolour, similarity, warp
from hallo3.training.encoders_run import train_encoder, write_metrics
from hallo3.training.loop import Log, LoopSettings, StepRandom

# Sources whose images surely show different people. Images of other sources may repeat a face: such pairs count
# neither as same nor as different.
DISTINCT_SOURCES = ("drawn", "initiative-sh/artflow-portraits")


def draw_crop(face: FaceImage, random: np.random.Generator, size: int = 64, strength: float = 1.0) -> Tensor:
    """A crop `(3, size, size)` as `crop_face` would cut it, from a box a little off, maybe mirrored or covered."""
    assert face.box is not None
    x, y, w, h = face.box
    side = max(w, h) * CROP_MARGIN
    offset = random.normal(0, 0.04 * strength, 2) * side
    zoom = side / size * math.exp(random.normal(0, 0.06 * strength))
    mirror = -1.0 if random.random() < 0.3 * strength else 1.0
    angle = float(random.normal(0, math.radians(6) * strength))
    centre = (x + w / 2 + float(offset[0]), y + h / 2 + float(offset[1]))
    matrix = similarity(centre, (size / 2, size / 2), (zoom * mirror, zoom), angle)
    crop = warp(face, matrix, size, size, torch.full((3, size, size), -1.0))
    return cover(crop, random) if random.random() < 0.15 * strength else crop


def develop(crops: list[Tensor], random: np.random.Generator) -> Tensor:
    """`(n, 3, size, size)`: crops recoloured, half of them blurred, as faces on the canvas are small."""
    images = torch.stack(crops)
    small = torch.from_numpy(random.permutation(len(crops)))
    for part in small[: len(crops) // 2].chunk(4):
        images[part] = blur(images[part], float(random.uniform(0.3, 0.8)))
    return recolour(images, random)


def by_identity(faces: list[FaceImage]) -> list[list[FaceImage]]:
    """The images of each person, in the order of their identity numbers."""
    people: dict[int, list[FaceImage]] = {}
    for face in faces:
        people.setdefault(face.identity, []).append(face)
    return [people[number] for number in sorted(people)]


def draw_pairs(
    groups: list[list[list[FaceImage]]], count: int, random: np.random.Generator, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Two crops of each of `count` people, `(count, 3, size, size)` twice, and which pairs count, `(count, count)`.

    Args:
        groups: Lists of people (each a list of images); every list gives the same share.
    """
    first, second, sources = [], [], []
    for group_index, people in enumerate(groups):
        share = len(range(group_index, count, len(groups)))
        for index in random.choice(len(people), min(share, len(people)), replace=False):
            person = people[int(index)]
            a, b = random.choice(len(person), 2, replace=len(person) < 2)
            first.append(draw_crop(person[int(a)], random, size))
            second.append(draw_crop(person[int(b)], random, size))
            sources.append(person[0].source)
    distinct = [[a != b or a in DISTINCT_SOURCES for b in sources] for a in sources]
    counts = torch.tensor(distinct) | torch.eye(len(sources), dtype=torch.bool)
    return develop(first, random), develop(second, random), counts


def contrastive_loss(a: Tensor, b: Tensor, counts: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE both ways between embeddings `(n, c)` of two crops of the same n people."""
    logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature
    logits = logits.masked_fill(~counts, -torch.inf)
    same = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def train_face(
    faces: list[list[FaceImage]],
    held_out: dict[str, list[FaceImage]],
    out: Path,
    settings: LoopSettings,
    *,
    config: dict[str, Any] | None = None,
    batch: int = 40,
    device: str = "cpu",
    log: Log = print,
) -> dict[str, Any]:
    """Trains the face encoder and writes `face_encoder/encoder/` and its metrics.

    Args:
        faces: Groups of images to learn from (drawn, photographed), with identities.
        held_out: Named groups to measure on.
        out: Folder of parts; the checkpoint lies in `out/checkpoints/face`.
        batch: People per step, two crops of each.
    """
    torch.manual_seed(settings.seed)
    encoder = FaceEncoder(**(config or {})).to(device)
    size = encoder.config["size"]
    groups = [by_identity(group) for group in faces if group]

    def step_loss(step: int, random: StepRandom) -> tuple[Tensor, dict[str, float]]:
        a, b, counts = draw_pairs(groups, batch, random.numpy, size)
        embeddings = encoder(torch.cat([a, b]).to(device))
        first, second = embeddings.chunk(2)
        loss = contrastive_loss(first, second, counts.to(device))
        # Keeps the numbers near unit variance from the start, so that the last standardisation changes little.
        spread = ((embeddings.std(0) - 1) ** 2).mean() + (embeddings.mean(0) ** 2).mean()
        return loss + 0.05 * spread, {"contrastive": float(loss.detach())}

    train_encoder(encoder, step_loss, out / "checkpoints" / "face", settings, log)
    standardise(encoder, [face for group in faces for face in group], settings.seed)
    encoder.eval().save_pretrained(out / "face_encoder" / "encoder")
    metrics = {name: evaluate_face(encoder, group) for name, group in held_out.items()}
    write_metrics(out / "face_encoder" / "encoder", metrics, log)
    return metrics


@torch.no_grad()
def embed(encoder: FaceEncoder, crops: Tensor, batch: int = 256) -> Tensor:
    """Embeddings `(n, c)` of crops `(n, 3, size, size)`."""
    return torch.cat([encoder(part.to(encoder.device)).cpu() for part in crops.split(batch)])


@torch.no_grad()
def standardise(encoder: FaceEncoder, faces: list[FaceImage], seed: int, most: int = 1024) -> None:
    """Folds into the last layer what makes its numbers zero mean and unit variance over faces."""
    random = np.random.default_rng([seed, 1 << 20])
    chosen = random.permutation(len(faces))[:most]
    crops = [draw_crop(faces[int(i)], random, encoder.config["size"], 0.5) for i in chosen]
    embeddings = embed(encoder, develop(crops, random))
    scale = 1 / embeddings.std(0).clamp(min=1e-3)
    bias, weight = encoder.project.bias, encoder.project.weight
    bias.copy_((bias - embeddings.mean(0).to(bias)) * scale.to(bias))
    weight.mul_(scale.to(weight)[:, None])


def evaluate_face(encoder: FaceEncoder, faces: list[FaceImage], seed: int = 0, views: int = 4) -> dict[str, Any]:
    """Verification on people never trained on: how surely cosines tell the same person from others.

    A person's pairs are different images where there are several, else crops of the one, augmented.
    """
    random = np.random.default_rng([seed, 1 << 21])
    crops, people, images, sources = [], [], [], []
    for number, person in enumerate(by_identity(faces)):
        for view in range(views):
            index = view % len(person)
            crops.append(draw_crop(person[index], random, encoder.config["size"], 0.5))
            people.append(number)
            images.append(index if len(person) > 1 else view)
            sources.append(person[0].source)
    z = embed(encoder, develop(crops, random))
    cosine = F.normalize(z, dim=-1) @ F.normalize(z, dim=-1).T
    who, which = torch.tensor(people), torch.tensor(images)
    same = (who[:, None] == who) & (which[:, None] != which)
    names = np.array(sources)
    apart = torch.from_numpy((names[:, None] != names) | np.isin(names, DISTINCT_SOURCES)[:, None])
    other = (who[:, None] != who) & apart
    return {
        "people": len(set(people)),
        "auc": area_under_curve(cosine[same].numpy(), cosine[other].numpy()),
        "same_cosine": float(cosine[same].mean()),
        "other_cosine": float(cosine[other].mean()),
        "deviation": float(z.std(0).mean()),
    }


def area_under_curve(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Chance that a positive scores above a negative (ties count half)."""
    order = np.sort(negatives)
    below = np.searchsorted(order, positives, "left") + np.searchsorted(order, positives, "right")
    return float(below.mean() / 2 / len(negatives))
