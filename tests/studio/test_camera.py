"""A camera that pans, pushes in or shakes: tracks, pictures, masks, keypoints and captions go together."""

import numpy as np
import pytest

from hallo3.studio.captions import caption
from hallo3.studio.identity import Identity
from hallo3.studio.performance import CAMERAS, Performance, performance
from hallo3.studio.renderer import render
from hallo3.studio.scene import Scene

HEIGHT, WIDTH = 96, 144
TRACKS = {"turn_x", "turn_y", "zoom"}


def acted(camera: str, seed: int = 3, frames: int = 60) -> Performance:
    return performance(np.random.default_rng(seed), np.full(frames, 0.3), np.full(frames, 0.5), "calm", camera)


def filmed(place: str = "bookshelf", **tracks: list[float]):
    """A clip of a person who does not move, filmed by a camera that does."""
    rng = np.random.default_rng(3)
    identity, scene = Identity.sample(rng), Scene.sample(rng, False, place)
    scene = Scene.from_dict({**scene.to_dict(), "prop": "none", "foreground": "none", "head_height": 0.5})
    count = len(next(iter(tracks.values())))
    still = {name: np.repeat(values[:1], count) for name, values in vars(acted("drift")).items()}
    still |= {name: np.zeros(count, np.float32) for name in ("camera_x", "camera_y")}
    still |= {name: np.asarray(values, np.float32) for name, values in tracks.items()}
    return render(identity, scene, Performance(**still), HEIGHT, WIDTH)


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_camera_moves_nothing_but_itself(camera: str) -> None:
    for seed in range(5):
        plain, moved = acted("drift", seed), acted(camera, seed)
        for name in set(vars(plain)) - TRACKS:
            np.testing.assert_array_equal(getattr(plain, name), getattr(moved, name), name)
        assert not plain.turn_x.any() and not plain.turn_y.any() and (plain.zoom == 1).all()


def test_cameras_move_as_far_and_as_fast_as_their_names_say() -> None:
    for seed in range(20):
        pan, push, hand = (acted(name, seed) for name in ("pan", "push", "hand-held"))
        assert 0.08 < np.ptp(pan.turn_x) < 0.3 and (np.diff(pan.turn_x) * (pan.turn_x[-1] - pan.turn_x[0]) > 0).all()
        assert np.abs(np.diff(pan.turn_x)).max() < 0.006, "slow"
        assert 1.1 < max(push.zoom[-1] / push.zoom[0], push.zoom[0] / push.zoom[-1]) < 1.45
        for track in (hand.turn_x, hand.turn_y):
            assert 0.01 < np.ptp(track) < 0.15
            turns = np.count_nonzero(np.diff(np.sign(np.diff(track))))
            assert turns > 4, "it shakes"
    long = acted("pan", 1, 1500)
    assert np.abs(long.turn_x).max() < 0.15, "a long pan comes back"


def test_a_pan_shifts_pictures_masks_boxes_and_keypoints_alike() -> None:
    drawn = filmed(turn_x=[0.0, 7 / HEIGHT], turn_y=[0.0, -4 / HEIGHT])
    np.testing.assert_allclose(drawn.camera, [[0, 0, 1], [7 / HEIGHT, -4 / HEIGHT, 1]], atol=1e-6)
    np.testing.assert_allclose((drawn.keypoints[1] - drawn.keypoints[0])[:-1], np.tile([7, -4], (14, 1)), atol=0.01)
    for name in ("face_box", "mouth_box"):
        before, after = getattr(drawn, name)
        np.testing.assert_allclose(after, before + np.array([7, -4, 0, 0]), atol=0.01)
    mask, moved = drawn.subject_mask[0][8:88, 20:120], drawn.subject_mask[1][4:84, 27:127]
    assert (mask != moved).mean() < 0.002
    frame, panned = drawn.frames[0][8:88, 20:120].astype(int), drawn.frames[1][4:84, 27:127]
    assert np.abs(frame - panned).mean() < 3 < np.abs(frame - drawn.frames[1][8:88, 20:120]).mean()


def test_a_push_enlarges_pictures_masks_boxes_and_keypoints_alike() -> None:
    drawn, middle = filmed(zoom=[1.0, 1.2]), np.array([WIDTH, HEIGHT]) / 2
    np.testing.assert_allclose(drawn.camera[:, 2], [1, 1.2])
    np.testing.assert_allclose(drawn.keypoints[1] - middle, 1.2 * (drawn.keypoints[0] - middle), atol=0.01)
    np.testing.assert_allclose(drawn.mouth_box[1, 2:], 1.2 * drawn.mouth_box[0, 2:], rtol=1e-3)
    np.testing.assert_allclose(drawn.lip_gap[1], 1.2 * drawn.lip_gap[0], rtol=1e-3)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    here = ((y + 0.5 - middle[1]) / 1.2 + middle[1]).astype(int), ((x + 0.5 - middle[0]) / 1.2 + middle[0]).astype(int)
    assert (drawn.subject_mask[0][here] != drawn.subject_mask[1]).mean() < 0.02
    behind = (drawn.subject_mask == 0).all(axis=0)
    assert np.abs(drawn.frames[1].astype(int) - drawn.frames[0])[behind].mean() > 3, "the surroundings grow too"


def test_a_shaking_camera_shakes_what_is_behind_too() -> None:
    hand = acted("hand-held")
    drawn = filmed(turn_x=list(hand.turn_x[::12]), turn_y=list(hand.turn_y[::12]))
    nose = drawn.keypoints[:, 2] - drawn.camera[:, :2] * HEIGHT
    np.testing.assert_allclose(nose, np.repeat(nose[:1], len(nose), 0), atol=0.02)
    assert np.abs(np.diff(drawn.frames[:, :8].astype(int), axis=0)).mean() > 2


def test_captions_say_what_the_camera_does() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        identity, scene = Identity.sample(rng), Scene.sample(rng)
        lines = {}
        for camera in CAMERAS:
            lines[camera] = caption(np.random.default_rng(seed), identity, scene, acted(camera, seed))
            assert lines[camera].startswith(lines["drift"])
        assert "camera " not in lines["drift"].replace("to the camera", "")
        pan, push = acted("pan", seed), acted("push", seed)
        assert (" right" if pan.turn_x[-1] < pan.turn_x[0] else " left") in lines["pan"][len(lines["drift"]) :]
        told = lines["push"][len(lines["drift"]) :]
        assert any(word in told for word in (("closer", "in.") if push.zoom[-1] > push.zoom[0] else ("away", "back")))
        assert "shak" in lines["hand-held"] or "hand" in lines["hand-held"]


def test_an_unknown_camera_is_refused() -> None:
    with pytest.raises(ValueError, match="drift, pan"):
        acted("crane")
