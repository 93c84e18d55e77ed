"""Meters of drawn people: the truth scores near perfect, and every planted fault shows where it should."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from hallo3.bundles.places import embedded_bundle
from hallo3.evaluation.motion import clip_borders
from hallo3.networks.faces import FaceEncoder
from hallo3.studio.dataset import Sample
from hallo3.studio.identity import Identity
from hallo3.studio.performance import Performance, performance
from hallo3.studio.renderer import render
from hallo3.studio.scene import Scene
from hallo3.training.score_cases import Case
from hallo3.training.score_drawn import (
    ReadCase,
    drawn_scores,
    identities,
    long_scores,
    read_case,
    still_scores,
    text_scores,
    view_scores,
)
from hallo3.training.score_table import Scores, passes

FRAMES, HEIGHT, WIDTH = 50, 96, 144
BORDERS = clip_borders(FRAMES, 17, 2)


def track(seed: int) -> np.ndarray:
    """Syllables and pauses, 0…1."""
    random = np.random.default_rng(seed)
    return np.convolve(random.random(FRAMES + 4) ** 2, np.hanning(7)[1:-1] / 3, "valid").clip(0, 1)


@cache
def person(seed: int, dynamic: bool = True) -> tuple[Identity, Scene, Performance]:
    random = np.random.default_rng([3, seed])
    identity, scene = Identity.sample(random), Scene.sample(random, dynamic, "snow")
    return identity, scene, performance(random, track(seed), track(seed + 100), "calm")


@cache
def drawn(seed: int, fault: str = "", dynamic: bool = True) -> Sample:
    """A drawn person who says what the seed fixes, with something wrong in the drawing."""
    identity, scene, acted = person(seed, dynamic)
    wrong = {
        "a mouth of one pixel": {"opening": 0.08 * acted.opening},
        "one width": {"width": np.full_like(acted.width, 0.5)},
        "what the first one says": {"opening": track(0).astype(np.float32)},
    }
    result = render(identity, scene, replace(acted, **wrong.get(fault, {})), HEIGHT, WIDTH)
    return Sample(
        **{name: getattr(result, name) for name in ("frames", "face_box", "mouth_box", "subject_mask")},
        **{name: getattr(result, name) for name in ("foreground_mask", "yaw", "pitch", "roll", "keypoints", "lip_gap")},
        speech=np.zeros(FRAMES * 640, np.float32),
        opening=acted.opening,
        width=acted.width,
        loudness=np.full(FRAMES, 0.5, np.float32),
        phone_class=np.zeros(FRAMES),
        caption="",
        identity=str(seed),
        source="drawn",
        meta={"seed": seed, "identity": identity.to_dict(), "scene": scene.to_dict()},
    )


@pytest.fixture(scope="module")
def encoder() -> FaceEncoder:
    return FaceEncoder.from_pretrained(embedded_bundle() / "face_encoder" / "encoder").eval()


@pytest.fixture(scope="module")
def true(encoder) -> list[ReadCase]:
    return [read_case(Case(drawn(seed), drawn(seed).frames), encoder, BORDERS) for seed in (0, 1)]


@pytest.fixture(scope="module")
def read(encoder, true):
    """Scores of one person whose video has a fault, and how far the faces in it are from the person."""

    def scores(frames: np.ndarray) -> tuple[Scores, float]:
        faulty = read_case(Case(drawn(0), frames), encoder, BORDERS)
        faces = [faulty.made.faces, true[1].made.faces]
        return drawn_scores([faulty, faulty]), float(identities(faces, [faulty.gallery, true[1].gallery])[0])

    return scores


def failed(scores: Scores) -> set[str]:
    return {name for name, score in scores.items() if not passes(name, score.value)}


def test_the_truth_is_near_perfect(true) -> None:
    scores = drawn_scores(true)
    assert not failed(scores) - {"wrong recordings"}
    assert scores["sync"].value > 0.95 and scores["lag"].value == 0
    assert scores["amplitude"].value == pytest.approx(1, abs=0.15)
    assert scores["mouth shape"].value > 0.75
    assert scores["identity"].value < 0.15
    assert scores["light"].value == 0 and scores["seams"].value == pytest.approx(1, abs=0.25)
    assert scores["subject dynamics"].value == scores["background dynamics"].value == scores["sharpness"].value == 1
    assert all(score.truth == pytest.approx(score.value) for score in scores.values())
    assert all(score.low <= score.value <= score.high for score in scores.values() if score.low is not None)


def test_a_frozen_video(read) -> None:
    scores, distance = read(np.repeat(drawn(0).frames[:1], FRAMES, 0))
    assert {"sync", "amplitude"} <= failed(scores)
    assert scores["subject dynamics"].value < 0.01 and scores["background dynamics"].value < 0.01
    assert distance < 0.2, "it is still the person"


def test_shuffled_frames(read) -> None:
    scores, _ = read(drawn(0).frames[np.random.default_rng(0).permutation(FRAMES)])
    assert "sync" in failed(scores) and scores["sync"].value < 0.4
    assert scores["background dynamics"].value > 1.3


def test_a_shifted_sound(read) -> None:
    scores, _ = read(np.roll(drawn(0).frames, 3, axis=0))
    assert {"sync", "lag"} <= failed(scores) and scores["lag"].value == 3


def test_a_mouth_of_one_pixel(read) -> None:
    scores, _ = read(drawn(0, "a mouth of one pixel").frames)
    assert "amplitude" in failed(scores) and scores["amplitude"].value < 0.3


def test_a_mouth_of_one_width(read) -> None:
    scores, _ = read(drawn(0, "one width").frames)
    assert abs(scores["mouth shape"].value) < 0.4
    assert scores["sync"].value > 0.9, "it opens and shuts rightly"


def test_somebody_else(read) -> None:
    scores, distance = read(drawn(2).frames)
    assert distance > 0.5, "the person scores below 0.15, see above"
    assert "sync" in failed(scores)


def test_flashes_at_the_clips_borders(read) -> None:
    frames = drawn(0).frames.astype(int)
    for number, border in enumerate(BORDERS):
        frames[border:] += 14 * (-1) ** number
    scores, _ = read(frames.clip(0, 255).astype(np.uint8))
    assert "seams" in failed(scores) and scores["seams"].value > 2
    assert scores["light"].value > 3


def test_still_surroundings_where_they_should_move(read) -> None:
    scores, _ = read(drawn(0, dynamic=False).frames)
    assert scores["background dynamics"].value < 0.5
    assert scores["subject dynamics"].value == pytest.approx(1, abs=0.1)


def test_one_mouth_for_everything_that_is_said(encoder) -> None:
    cases = [Case(drawn(seed), drawn(seed, "what the first one says").frames) for seed in (0, 1, 2)]
    scores = drawn_scores([read_case(case, encoder, []) for case in cases])
    assert scores["wrong recordings"].value > 0.9
    assert scores["wrong recordings"].truth < 0.5
    assert "seams" not in scores, "one clip has none"


def test_a_view_is_scored_by_its_sync() -> None:
    truth = drawn(1)
    scores = view_scores("profile", [Case(truth, np.roll(truth.frames, 4, axis=0))])
    assert scores["profile sync"].truth > 0.9 and "profile sync" in failed(scores)
    assert view_scores("profile", []) == {}


def test_surroundings_that_melt_away() -> None:
    truth = drawn(1, dynamic=False)
    noise = np.random.default_rng(0).integers(0, 255, truth.frames.shape).astype(np.uint8)
    scores = still_scores([Case(truth, noise)])
    assert "still areas" in failed(scores) and scores["still areas"].truth > 0.75


def test_the_prompt_decides_whether_surroundings_move() -> None:
    moving, still = drawn(0), drawn(0, dynamic=False)
    right = (Case(moving, moving.frames), Case(still, still.frames))
    swapped = (Case(moving, still.frames), Case(still, moving.frames))
    deaf = (Case(moving, moving.frames), Case(still, moving.frames))
    scores = text_scores([right, right])
    assert scores["text control"].value == scores["text control"].truth == 1
    for fault in (swapped, deaf):
        scores = text_scores([right, fault])
        assert scores["text control"].value == 0.5 and failed(scores) == {"text control"}


def test_a_face_that_slowly_becomes_another(encoder) -> None:
    truth, other = drawn(1), drawn(2)
    share = np.linspace(0, 0.6, FRAMES)[:, None, None, None]
    melting = (truth.frames * (1 - share) + other.frames * share).astype(np.uint8)
    (slope,) = long_scores([Case(truth, melting)], encoder).values()
    assert slope.low > 0 and slope.value > 5 * abs(slope.truth)
    (level,) = long_scores([Case(truth, truth.frames)], encoder).values()
    assert level.value == level.truth and abs(level.value) < 1
