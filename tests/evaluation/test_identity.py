"""Identity: what describes a face, and slopes that are really there."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hallo3.evaluation.identity import face_features, slope
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


def test_features_tell_people_and_blur_but_no_brightness() -> None:
    people = [person(number) for number in range(3)]
    features = [face_features(p.frames, p.face_box) for p in people]
    assert np.allclose(features[0].mean(1), 0) and np.allclose(features[0].std(1), 1)
    assert features[0].shape == (6, 640) and not np.allclose(features[0][0], features[0][1])

    def gap(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - b) ** 2).mean())

    same = np.median([gap(one[0], one[1:]) for one in features])
    assert np.median([gap(features[i][0], features[j][1:]) for i, j in ((0, 1), (1, 2), (2, 0))]) > 2 * same
    first = people[0]
    darker = (first.frames * 0.8).astype(np.uint8)
    assert gap(face_features(darker, first.face_box), features[0]) < 0.1 * same
    blurred = np.stack([gaussian_filter(frame, (2, 2, 0)) for frame in first.frames])
    assert gap(face_features(blurred, first.face_box), features[0]) > 5 * gap(
        face_features(darker, first.face_box), features[0]
    )


def test_a_slope_is_found_and_its_interval_holds_it() -> None:
    random = np.random.default_rng(0)
    noise = np.convolve(random.standard_normal(1509), np.ones(10) / 10, "valid") * 0.05
    found = slope(0.2 + 0.01 * np.arange(1500) / 25 + noise)
    assert found.low < 0.01 < found.high and found.low > 0
    level = slope(0.2 + noise)
    assert level.low < 0 < level.high
    with pytest.raises(ValueError, match="50 frames"):
        slope(np.zeros(49))
