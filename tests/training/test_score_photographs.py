"""Meters of talking photographs: one that only talks passes, and every planted fault shows where it should."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hallo3.bundles.places import embedded_bundle
from hallo3.errors import UserError
from hallo3.pipeline import Hallo3Pipeline
from hallo3.studio.photographs import face_labels
from hallo3.training import score_photographs
from hallo3.training.score_photographs import (
    Talking,
    find_pictures,
    held_still,
    photograph_scores,
    talking_photographs,
)
from hallo3.training.score_table import Scores, passes

FRAMES = 120
MOUTH, UPPER_FACE = np.s_[32:40, 24:40], np.s_[12:28, 20:44]


def part(place: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros((48, 64), bool)
    mask[place] = True
    return mask


@pytest.fixture(scope="module")
def loudness() -> np.ndarray:
    random = np.random.default_rng(3)
    return np.convolve(random.random(FRAMES + 8) ** 3, np.hanning(11)[1:-1] / 4, "valid")


@pytest.fixture(scope="module")
def talking(loudness: np.ndarray) -> Talking:
    """A still picture with a little noise as of a VAE, and a mouth that is somewhere else in every loud frame."""
    random = np.random.default_rng(0)
    portrait = random.integers(60, 200, (48, 64, 3)).astype(np.uint8)
    frames = np.repeat(portrait[None].astype(float), FRAMES, 0)
    frames[:, *MOUTH] -= 60 * (loudness * random.random(FRAMES))[:, None, None, None]
    noisy = [
        (video + random.normal(0, 0.6, video.shape)).round().clip(0, 255).astype(np.uint8)
        for video in (frames, np.repeat(portrait[None], 17, 0))
    ]
    outside = ~part(np.s_[8:44, 16:48])
    return Talking(noisy[0], portrait, noisy[1], outside, part(MOUTH), part(UPPER_FACE))


def failed(scores: Scores) -> set[str]:
    return {name for name, score in scores.items() if not passes(name, score.value)}


def test_one_that_only_talks_passes(talking: Talking, loudness: np.ndarray) -> None:
    scores = photograph_scores([talking], loudness)
    assert not failed(scores)
    assert scores["photograph outside the face"].value > 0.95
    assert scores["photograph flicker"].value == pytest.approx(1, abs=0.1)
    assert scores["photograph mouth"].value > 0.6


def test_a_frozen_mouth_and_somebody_elses_speech(talking: Talking, loudness: np.ndarray) -> None:
    frozen = np.repeat(talking.frames[:1], FRAMES, 0)
    assert failed(photograph_scores([replace(talking, frames=frozen)], loudness)) == {"photograph mouth"}
    assert "photograph mouth" in failed(photograph_scores([talking], np.roll(loudness, 30)))


def test_a_picture_that_melts(talking: Talking, loudness: np.ndarray) -> None:
    share = np.linspace(0, 0.9, FRAMES)[:, None, None, None]
    grey = (talking.frames * (1 - share) + 128 * share).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 255, grey.shape[1:]) * share[-1]
    grey[-1] = (grey[-1] * 0.5 + noise * 0.5).astype(np.uint8)
    assert "photograph outside the face" in failed(photograph_scores([replace(talking, frames=grey)], loudness))


def test_a_flash(talking: Talking, loudness: np.ndarray) -> None:
    flashing = talking.frames.astype(int)
    flashing[60] += 40
    scores = photograph_scores([replace(talking, frames=flashing.clip(0, 255).astype(np.uint8))], loudness)
    assert "photograph largest change" in failed(scores)


def test_a_background_that_trembles_more_than_the_vae(talking: Talking, loudness: np.ndarray) -> None:
    trembling = talking.frames.astype(int)
    trembling[::2] += 2 * talking.outside[..., None]
    scores = photograph_scores([replace(talking, frames=trembling.clip(0, 255).astype(np.uint8))], loudness)
    assert "photograph flicker" in failed(scores) and "photograph mouth" not in failed(scores)


def test_the_worst_of_several_counts(talking: Talking, loudness: np.ndarray) -> None:
    flashing = talking.frames.copy()
    flashing[60] = 255 - flashing[60]
    both = photograph_scores([talking, replace(talking, frames=flashing)], loudness)
    alone = photograph_scores([replace(talking, frames=flashing)], loudness)
    assert both["photograph largest change"] == alone["photograph largest change"]


@pytest.fixture(scope="module")
def pipeline() -> Hallo3Pipeline:
    return Hallo3Pipeline.from_pretrained("embedded")


def test_a_photograph_is_made_to_talk(pipeline: Hallo3Pipeline, tmp_path: Path) -> None:
    portrait = Image.open(embedded_bundle() / "sample" / "portrait.png")
    portrait.crop((64, 0, 320, 256)).save(tmp_path / "square.png")
    speech = np.random.default_rng(0).normal(0, 0.1, 6 * 640).astype(np.float32)
    (made,) = talking_photographs(pipeline, find_pictures(tmp_path), speech)
    assert made.frames.shape == (6, 128, 128, 3) and made.portrait.shape == (128, 128, 3)
    assert made.decoded.shape == (33, 128, 128, 3)
    for mask in (made.outside, made.mouth, made.upper_face):
        assert mask.shape == (128, 128) and 0.02 < mask.mean() < 0.9
    assert not (made.outside & (made.mouth | made.upper_face)).any() and not (made.mouth & made.upper_face).any()
    rows = [np.nonzero(mask)[0].mean() for mask in (made.upper_face, made.mouth)]
    assert rows[0] < rows[1]


def test_what_is_held_still_flickers_as_the_vae_does(pipeline: Hallo3Pipeline) -> None:
    canvas = np.random.default_rng(0).integers(0, 255, (128, 192, 3)).astype(np.uint8)
    one, again = (held_still(pipeline, canvas) for _ in range(2))
    assert one.shape == (33, 128, 192, 3) and np.array_equal(one, again)
    assert (one[8] != one[20]).any()


def test_pictures_that_can_not_be_scored(pipeline: Hallo3Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.jpg"):
        find_pictures(tmp_path)
    Image.new("RGB", (200, 200), (90, 120, 90)).save(tmp_path / "wall.png")
    with pytest.raises(UserError, match=r"wall\.png: portrait: no face"):
        list(talking_photographs(pipeline, find_pictures(tmp_path), np.zeros(3840, np.float32)))


def test_only_photographs_that_were_kept_out_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for name in ("trained.jpg", "kept.jpg", "mine.png"):
        Image.fromarray(random.integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(tmp_path / name)
    digests = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("trained.jpg", "kept.jpg")}
    # Known by its content, whatever it is called.
    labels = [
        replace(face_labels()[0], file="other.jpg", sha256=digests["trained.jpg"], split="train"),
        replace(face_labels()[0], file="kept.jpg", sha256=digests["kept.jpg"], split="test"),
    ]
    monkeypatch.setattr(score_photographs, "face_labels", lambda: tuple(labels))
    assert [path.name for path in find_pictures(tmp_path)] == ["kept.jpg", "mine.png"]
    for name in ("kept.jpg", "mine.png"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="all 1 pictures are ones to train on"):
        find_pictures(tmp_path)
