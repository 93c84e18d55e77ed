import numpy as np
import pytest

from hallo3.evaluation.meters import (
    CropMeter,
    correlation,
    crops,
    partial_correlation,
    structural_similarity,
)


def talking(opening, seed=0, shift=0, width=None):
    """Flat faces whose mouth is a dark ellipse as high as `opening` and as wide as `width`, and the mouths' boxes."""
    random = np.random.default_rng(seed)
    frames = np.empty((len(opening), 64, 96, 3), np.uint8)
    skin, lips = random.integers(150, 230, 3), random.integers(20, 80, 3)
    y, x = np.mgrid[:64, :96]
    width = np.full(len(opening), 0.5) if width is None else width
    for frame, size, spread in zip(frames, opening, width, strict=True):
        inside = ((x - 48 - shift) / (6 + 6 * spread)) ** 2 + ((y - 40) / (0.5 + 6 * size)) ** 2 < 1
        frame[:] = np.where(inside[..., None], lips, skin)
        frame[:] = np.clip(frame + random.normal(0, 3, frame.shape), 0, 255)
    boxes = np.tile(np.array([36.0 + shift, 31.0, 24.0, 18.0]), (len(opening), 1))
    return frames, boxes


@pytest.fixture
def opening():
    random = np.random.default_rng(3)
    return np.convolve(random.random(104), np.ones(5) / 5, "valid")[:100].clip(0, 1)


def test_the_truth_is_measured_as_true(opening):
    frames, boxes = talking(opening)
    meter = CropMeter(frames[:50], boxes[:50], opening[:50])
    measured = meter(frames[50:], boxes[50:])
    assert correlation(measured, opening[50:]) > 0.95
    assert np.std(measured) == pytest.approx(np.std(opening[50:]), rel=0.15)


def test_shuffled_and_frozen_mouths_score_nothing(opening):
    frames, boxes = talking(opening)
    meter = CropMeter(frames[:50], boxes[:50], opening[:50])
    other = np.random.default_rng(1).permutation(50)
    assert abs(correlation(meter(frames[50:][other], boxes[50:]), opening[50:])) < 0.4
    still, _ = talking(np.full(50, 0.3))
    assert abs(correlation(meter(still, boxes[50:]), opening[50:])) < 0.4
    assert np.std(meter(still, boxes[50:])) < 0.1 * np.std(opening[50:])


@pytest.fixture
def width(opening):
    """Goes its own way."""
    return np.convolve(np.random.default_rng(4).random(104), np.ones(5) / 5, "valid")[:100].clip(0, 1)


@pytest.fixture
def read_width(opening, width):
    """How well the second half of a video shows a true width, beyond what its opening tells of it."""
    frames, boxes = talking(opening, width=width)
    meter = CropMeter(frames[:50], boxes[:50], width[:50])

    def read(true, shown):
        video, _ = talking(opening[50:], width=shown[50:])
        return partial_correlation(meter(video, boxes[50:]), true[50:], opening[50:])

    return read


def test_the_width_of_the_truth_is_read(width, read_width):
    assert read_width(width, width) > 0.9


def test_a_mouth_that_opens_rightly_and_never_widens_has_no_width(opening, width, read_width):
    """Also where the true width partly goes with the opening, so that a meter of one could pass for the other's."""
    assert abs(read_width(width, np.full(100, 0.5))) < 0.4
    together = (opening + width) / 2
    assert read_width(together, together) > 0.6
    assert abs(read_width(together, np.full(100, 0.5))) < 0.4


def test_shuffled_and_reversed_widths_are_wrong(width, read_width):
    assert abs(read_width(width, np.random.default_rng(2).permutation(width))) < 0.4
    assert read_width(width, 1 - width) < -0.8


def test_what_another_track_explains_is_taken_away():
    random = np.random.default_rng(5)
    shared, own, other = random.standard_normal((3, 500))
    assert correlation(shared + own, shared + other) > 0.4
    assert abs(partial_correlation(shared + own, shared + other, shared)) < 0.15
    assert partial_correlation(shared + own, own, np.stack([shared, other], axis=1)) > 0.99
    assert partial_correlation(shared, own, shared) == 0


def test_the_meter_follows_a_mouth_that_moves_in_the_picture(opening):
    frames, boxes = talking(opening)
    moved, moved_boxes = talking(opening, shift=7)
    meter = CropMeter(frames[:50], boxes[:50], opening[:50])
    assert correlation(meter(moved[50:], moved_boxes[50:]), opening[50:]) > 0.95


def test_a_track_that_does_not_move_correlates_with_nothing():
    assert correlation(np.zeros(5), np.arange(5.0)) == 0
    assert correlation(np.arange(5.0), np.arange(5.0) * -2) == pytest.approx(-1)


def test_crops_sample_the_box():
    frames = np.zeros((1, 20, 20, 3), np.uint8)
    frames[0, 5:10, 8:16] = 255
    found = crops(frames, np.array([[8.0, 5.0, 8.0, 5.0]]), (5, 8))
    assert found.shape == (1, 5, 8, 3)
    assert found.min() == 1.0


def test_similarity_of_a_picture_to_itself_and_to_another(opening):
    frames, _ = talking(opening)
    other, _ = talking(opening, seed=9)
    assert structural_similarity(frames[0], frames[0]) == pytest.approx(1)
    noise = np.random.default_rng(0).integers(0, 255, frames[0].shape).astype(np.uint8)
    assert structural_similarity(frames[0], noise) < 0.1
    assert structural_similarity(frames[0], other[0]) < 0.999


def test_similarity_looks_inside_the_mask_only(opening):
    frames, _ = talking(opening)
    changed = frames[0].copy()
    changed[:, :40] = 0
    mask = np.zeros((64, 96), bool)
    mask[:, 60:] = True
    assert structural_similarity(frames[0], changed, mask) > 0.99 > structural_similarity(frames[0], changed)
    with pytest.raises(ValueError, match="empty"):
        structural_similarity(frames[0], changed, np.zeros((64, 96), bool))
