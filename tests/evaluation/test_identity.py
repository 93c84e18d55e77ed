"""Identity: the embedded face encoder on drawn people, and slopes that are really there."""

import numpy as np
import pytest

from hallo3.bundles.places import embedded_bundle
from hallo3.evaluation.identity import distances, face_embeddings, matched_distances, slope
from hallo3.networks.faces import FaceEncoder
from hallo3.studio.identity import Identity
from hallo3.studio.performance import performance
from hallo3.studio.renderer import render
from hallo3.studio.scene import Scene


def person(number: int, frames: int = 6):
    """A drawn person who talks: frames and face boxes."""
    random = np.random.default_rng([5, number])
    identity, scene = Identity.sample(random), Scene.sample(random)
    opening = np.abs(np.sin(np.arange(frames * 5)))
    acted = performance(random, opening, np.full(frames * 5, 0.5), "conversation")[::5]
    return render(identity, scene, acted, 128, 192)


@pytest.fixture(scope="module")
def encoder():
    return FaceEncoder.from_pretrained(embedded_bundle() / "face_encoder" / "encoder").eval()


def test_the_truth_is_nearer_than_somebody_else(encoder) -> None:
    people = [person(number) for number in range(4)]
    vectors = [face_embeddings(encoder, p.frames, p.face_box) for p in people]
    assert np.allclose(np.linalg.norm(vectors[0], axis=1), 1, atol=1e-5)
    same = [distances(v[1:], v[0]).mean() for v in vectors]
    other = [distances(vectors[i][1:], vectors[j][0]).mean() for i in range(4) for j in range(4) if i != j]
    assert np.median(same) < 0.5 * np.median(other), "a swapped identity is far away"


def test_frames_are_embedded_alike_in_whatever_batches(encoder) -> None:
    drawn = person(0, 40)
    whole = face_embeddings(encoder, drawn.frames, drawn.face_box)
    alone = face_embeddings(encoder, drawn.frames[37:38], drawn.face_box[37:38])
    assert np.allclose(whole[37:38], alone, atol=1e-5)


def test_a_turned_head_is_still_the_person_among_their_poses() -> None:
    """Embeddings on an arc by pose: the distance to one pose grows with the turn, to the nearest pose it doesn't."""
    pose = np.linspace(0, 1, 40)
    arc = np.stack([np.cos(pose), np.sin(pose), np.zeros(40)], axis=1)
    gallery = arc[::4]
    assert distances(arc, arc[0]).max() > 0.4 and matched_distances(arc, gallery).max() < 0.01
    swapped = np.tile([0.0, 0.0, 1.0], (40, 1))
    assert matched_distances(swapped, gallery).min() > 0.9
    away = np.linspace(0, 0.3, 40)[:, None]
    drifting = np.sqrt(1 - away**2) * arc + away * swapped
    assert (np.diff(matched_distances(drifting, arc)) > 0).mean() > 0.9


def test_a_slope_is_found_and_its_interval_holds_it() -> None:
    random = np.random.default_rng(0)
    noise = np.convolve(random.standard_normal(1509), np.ones(10) / 10, "valid") * 0.05
    found = slope(0.2 + 0.01 * np.arange(1500) / 25 + noise)
    assert found.low < 0.01 < found.high and found.low > 0
    level = slope(0.2 + noise)
    assert level.low < 0 < level.high
    with pytest.raises(ValueError, match="50 frames"):
        slope(np.zeros(49))
