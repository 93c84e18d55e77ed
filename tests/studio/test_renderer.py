import numpy as np
import pytest

from hallo3.errors import UserError
from hallo3.studio.identity import MEN_HAIR, WOMEN_HAIR, Identity
from hallo3.studio.performance import STYLES, performance
from hallo3.studio.renderer import render, stream
from hallo3.studio.scene import FOREGROUNDS, PLACES, PROPS, STILL_ONLY, Scene
from hallo3.studio.skeleton import KEYPOINTS


def _clip(seed: int, frames: int = 3, style: str = "conversation", dynamic: bool | None = None):
    rng = np.random.default_rng(seed)
    identity, scene = Identity.sample(rng), Scene.sample(rng, dynamic)
    scene = Scene.from_dict({**scene.to_dict(), "prop": "none", "foreground": "none"})
    acted = performance(rng, np.linspace(0, 1, frames), np.full(frames, 0.5), style)
    return identity, scene, acted


def _held(acted, **values):
    """The first frame of a performance repeated, with some arrays replaced."""
    count = len(next(iter(values.values())))
    fixed = {name: np.repeat(array[:1], count) for name, array in vars(acted).items()}
    return type(acted)(**{**fixed, **{k: np.asarray(v, np.float32) for k, v in values.items()}})


def _inside(point, box, margin=0.0):
    x, y, w, h = box
    return x - margin <= point[0] <= x + w + margin and y - margin <= point[1] <= y + h + margin


def test_the_same_seed_gives_the_same_frames():
    first, second = (render(*_clip(5), 64, 96) for _ in range(2))
    for name, values in vars(first).items():
        np.testing.assert_array_equal(values, getattr(second, name), name)
    assert not np.array_equal(first.frames, render(*_clip(6), 64, 96).frames)


def test_a_part_of_a_performance_gives_the_same_frames_as_the_whole():
    identity, scene, acted = _clip(7, 4)
    whole = render(identity, scene, acted, 48, 72).frames
    assert np.array_equal(whole[2:], render(identity, scene, acted[2:], 48, 72).frames)
    assert np.array_equal(whole[0], next(stream(identity, scene, acted, 48, 72))["frames"])


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_opening_changes_the_picture_inside_the_mouth_box(seed):
    identity, scene, acted = _clip(seed, dynamic=False)
    out = render(identity, scene, _held(acted, opening=[0.0, 1.0]), 128, 192)
    change = np.abs(out.frames[1].astype(float) - out.frames[0]).sum(axis=-1)
    x, y, w, h = out.mouth_box[0].round().astype(int)
    inside = change[y : y + h, x : x + w]
    outside = (change.sum() - inside.sum()) / (change.size - inside.size)
    # The chin drops and the neck falls into its shadow, too; yet most happens at the mouth.
    assert inside.mean() > 10 * outside
    assert inside.sum() > 20 * 255


def test_a_wide_open_mouth_is_at_least_eight_pixels_high_and_closes():
    for seed in range(4):
        identity, scene, acted = _clip(seed)
        out = render(identity, scene, _held(acted, opening=[0.0, 0.5, 1.0]), 128, 192)
        assert out.lip_gap[0] < 0.3
        assert 0.35 * out.lip_gap[2] < out.lip_gap[1] < 0.65 * out.lip_gap[2]
        assert out.lip_gap[2] >= 8


def test_width_spreads_the_corners_of_the_mouth():
    identity, scene, acted = _clip(1)
    out = render(identity, scene, _held(acted, width=[0.0, 0.5, 1.0]), 128, 192)
    left, right = KEYPOINTS.index("mouth_left"), KEYPOINTS.index("mouth_right")
    spans = np.linalg.norm(out.keypoints[:, right] - out.keypoints[:, left], axis=-1)
    assert spans[0] * 1.2 < spans[1] < spans[2] / 1.15


@pytest.mark.parametrize("style", STYLES)
def test_boxes_hold_what_they_say(style):
    identity, scene, acted = _clip(11, style=style)
    out = render(identity, scene, acted, 128, 192)
    for i in range(3):
        for box in (out.face_box[i], out.mouth_box[i], out.head_box[i]):
            x, y, w, h = box
            assert x >= 0 and y >= 0 and w > 4 and h > 4 and x + w <= 192 and y + h <= 128
        for name in ("nose", "mouth_left", "mouth_right", "lip_upper", "lip_lower"):
            assert _inside(out.keypoints[i, KEYPOINTS.index(name)], out.face_box[i], 1.0)
        for name in ("mouth_left", "mouth_right", "lip_upper", "lip_lower"):
            assert _inside(out.keypoints[i, KEYPOINTS.index(name)], out.mouth_box[i])
        x, y, w, h = out.face_box[i].round().astype(int)
        assert out.subject_mask[i, y : y + h, x : x + w].mean() > 0.75
        assert 0.25 < h / 128 < 0.75


def test_the_mask_separates_character_and_surroundings():
    identity, scene, acted = _clip(3, dynamic=False)
    out = render(identity, scene, _held(acted, head_x=[0.0, 0.25]), 96, 144)
    still = (out.subject_mask[0] == 0) & (out.subject_mask[1] == 0)
    still &= ~_grown(out.subject_mask.any(axis=0))
    assert np.array_equal(out.frames[0][still], out.frames[1][still])
    assert not np.array_equal(out.frames[0], out.frames[1])
    assert 0.15 < out.subject_mask.mean() < 0.75


def _grown(mask):
    padded = np.pad(mask, 1)
    return np.any([np.roll(padded, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)[1:-1, 1:-1]


@pytest.mark.parametrize("place", [p for p in PLACES if p not in STILL_ONLY])
def test_dynamic_surroundings_move_and_still_ones_do_not(place):
    identity, scene, acted = _clip(4)
    moving = _held(acted, time=[10.0, 10.6])
    for dynamic in (False, True):
        chosen = Scene.from_dict({**scene.to_dict(), "place": place, "dynamic": dynamic, "flicker": 0.0})
        out = render(identity, chosen, moving, 64, 96)
        behind = (out.subject_mask == 0).all(axis=0)
        change = np.abs(out.frames[1].astype(float) - out.frames[0])[behind].mean()
        assert change > 0.5 if dynamic else change == 0


def test_a_profile_shows_the_side():
    identity, scene, acted = _clip(8)
    out = render(identity, scene, _held(acted, yaw=[-1.3, 0.0, 1.3]), 128, 192)
    nose, chin = KEYPOINTS.index("nose"), KEYPOINTS.index("lip_upper")
    middle = out.head_box[:, 0] + out.head_box[:, 2] / 2
    assert out.keypoints[0, nose, 0] < middle[0] - 8 and out.keypoints[2, nose, 0] > middle[2] + 8
    assert out.keypoints[2, nose, 0] > out.keypoints[2, chin, 0]
    assert out.face_box[2, 2] < 0.85 * out.face_box[1, 2]


@pytest.mark.parametrize("yaw", [-90, 90])
def test_a_full_profile_shows_nose_ear_and_one_eye(yaw):
    identity, scene, acted = _clip(8, dynamic=False)
    values = {**identity.to_dict(), "hair": "bald", "hat": "none", "glasses": "none", "beard": "none"}
    violet = Identity.from_dict({**values, "eye_rgb": (0.7, 0.0, 1.0), "skin_rgb": (0.9, 0.7, 0.6), "earrings": False})
    turned = np.radians([0.0, yaw])
    out = render(violet, scene, _held(acted, yaw=turned, body_yaw=0.65 * turned, gaze_x=[0, 0], blink=[0, 0]), 192, 288)
    side, subject = np.sign(yaw), out.subject_mask[1].astype(bool)
    nose, near, far = (
        out.keypoints[1, KEYPOINTS.index(name)]
        for name in ("nose", *(("ear_left", "ear_right") if yaw > 0 else ("ear_right", "ear_left")))
    )
    across = np.flatnonzero(subject[int(nose[1])])
    assert abs((across.max() if yaw > 0 else across.min()) - nose[0]) < 3, "nothing stands out further than the nose"
    assert abs(near[0] - far[0]) < 4 and 0.3 < (nose[0] - near[0]) * side / np.ptp(across) < 0.75
    irises = [
        (f[..., 2] > f[..., 1] * 1.5) & (f[..., 2] > 60) & (f[..., 0] > f[..., 1] * 1.1)
        for f in out.frames.astype(float)
    ]
    box = out.face_box.round().astype(int)
    rows, columns = np.nonzero(irises[1] & subject)
    assert 0.1 * irises[0].sum() < len(rows) < 0.6 * irises[0].sum()
    assert np.ptp(columns) < 0.2 * box[0, 2] and ((columns - near[0]) * side > 0).all(), "one eye, before the ear"
    ear = out.frames[1, int(near[1]) - 8 : int(near[1]) + 8, int(near[0]) - 8 : int(near[0]) + 8].astype(float)
    assert ear.std(axis=(0, 1)).mean() > 4, "an ear has a relief"


@pytest.mark.parametrize(("style", "sign"), [("higher", -1), ("lower", 1)])
def test_from_far_above_and_below_the_whole_face_is_still_seen(style, sign):
    for seed in range(3):
        identity, scene, acted = _clip(seed, 3, style, dynamic=False)
        flat = _held(acted, pitch=[0.0], body_pitch=[0.0], head_y=[0.0], roll=[0.0])
        out, level = (render(identity, scene, one, 128, 192) for one in (acted, flat))
        chin, eye, nose = (KEYPOINTS.index(name) for name in ("chin", "eye_left", "nose"))
        assert (out.keypoints[:, chin, 1] < 124).all() and (out.keypoints[:, eye, 1] > 4).all()
        # From above the nose comes down to the chin, from below it goes up to the eyes.
        down, as_ever = (np.diff(one.keypoints[0, [eye, nose, chin], 1]) for one in (out, level))
        share, usual = down[0] / down.sum(), as_ever[0] / as_ever.sum()
        assert share > usual + 0.12 if sign < 0 else share < usual - 0.12
        free = (level.subject_mask[0] == 0) & (out.subject_mask[0] == 0)
        assert np.abs(out.frames[0].astype(int) - level.frames[0])[free].mean() > 1, "the surroundings from there too"


def _points(out, *names):
    return (out.keypoints[:, KEYPOINTS.index(name)] for name in names)


def test_the_skeleton_is_in_the_order_of_a_body():
    identity, scene, acted = _clip(12)
    out = render(
        identity, scene, _held(acted, yaw=[0.0, 0.0], pitch=[0.0] * 2, roll=[0.0, 0.3], body_yaw=[0.0] * 2), 128, 192
    )
    top, eye, chin, neck, shoulder = (
        p[0] for p in _points(out, "head_top", "eye_left", "chin", "neck", "shoulder_left")
    )
    assert top[1] < eye[1] < chin[1] < shoulder[1] and chin[1] - 4 < neck[1] < shoulder[1]
    across = [p[0, 0] for p in _points(out, "shoulder_left", "ear_left", "eye_left", "nose", "eye_right", "ear_right")]
    assert across == sorted(across)
    # The head tilts to the right; shoulders stay.
    tops, ears, shoulders = _points(out, "head_top", "ear_left", "shoulder_left")
    assert tops[1, 0] > tops[0, 0] + 8 and ears[1, 1] < ears[0, 1] - 4
    assert np.allclose(shoulders[0], shoulders[1])
    assert np.isnan(out.keypoints[:, KEYPOINTS.index("hand")]).all()
    assert np.isfinite(out.keypoints[:, : KEYPOINTS.index("hand")]).all()


def test_ears_and_shoulders_are_seen_where_they_are_said_to_be():
    """Both are painted in colours of their own, and found again by these."""
    identity, scene, acted = _clip(12, dynamic=False)
    values = {
        **identity.to_dict(),
        "hair": "bald",
        "hat": "none",
        "glasses": "none",
        "beard": "none",
        "clothes": "t-shirt",
    }
    bare = Identity.from_dict({**values, "clothes_rgb": (0.0, 0.9, 0.0), "pattern": "plain", "earrings": False})
    out = render(bare, scene, _held(acted, yaw=[0.0], roll=[0.0], pitch=[0.0], body_yaw=[0.0]), 192, 288)
    left, right = (p[0].astype(int) for p in _points(out, "shoulder_left", "shoulder_right"))
    for x, y in (left, right):
        red, leaf, blue = out.frames[0, y + 6, x].astype(int)
        assert leaf > 1.3 * max(red, blue), "below the joint there is cloth"
        assert out.subject_mask[0, y - 16, x] == 0, "above the shoulder there is air"
    for ear, outwards in zip((p[0].astype(int) for p in _points(out, "ear_left", "ear_right")), (-1, 1), strict=True):
        assert out.subject_mask[0, ear[1], ear[0]] and not out.subject_mask[0, ear[1], ear[0] + 8 * outwards]


@pytest.mark.parametrize(("prop", "held"), [("phone", True), ("microphone", True), ("desk microphone", False)])
def test_a_hand_is_where_something_is_held(prop, held):
    identity, scene, acted = _clip(10, dynamic=False)
    values = {**scene.to_dict(), "head_height": 0.5, "centre": (0.5, 0.4)}
    out = render(identity, Scene.from_dict({**values, "prop": prop}), acted[:1], 128, 192)
    (hand,) = next(_points(out, "hand"))
    assert np.isfinite(hand).all() == held
    if held:
        bare = render(identity, Scene.from_dict(values), acted[:1], 128, 192)
        x, y = hand.astype(int)
        near = np.s_[0, y - 2 : y + 3, x - 2 : x + 3]
        assert (np.abs(out.frames[near].astype(int) - bare.frames[near]).sum(axis=-1) > 30).mean() > 0.8


@pytest.mark.parametrize(("height", "width"), [(16, 16), (37, 53), (150, 101), (61, 240)])
def test_odd_sizes(height, width):
    out = render(*_clip(2, 1), height, width)
    assert out.frames.shape == (1, height, width, 3) and out.subject_mask.shape == (1, height, width)


def test_frames_too_small_are_refused():
    with pytest.raises(UserError, match="16"):
        render(*_clip(0, 1), 8, 100)


@pytest.mark.parametrize("hair", sorted({*MEN_HAIR, *WOMEN_HAIR}))
def test_every_hair_leaves_eyes_and_mouth_free(hair):
    identity, scene, acted = _clip(9, dynamic=False)
    plain = {**identity.to_dict(), "hat": "none", "glasses": "none", "beard": "none", "skin_rgb": (0.9, 0.7, 0.6)}
    green = Identity.from_dict({**plain, "hair": hair, "hair_rgb": (0.0, 0.9, 0.0), "hat_colour": "green"})
    out = render(green, scene, _held(acted, yaw=[0.0]), 128, 192)
    for name in ("nose", "eye_left", "eye_right", "lip_upper"):
        x, y = out.keypoints[0, KEYPOINTS.index(name)].astype(int)
        red, leaf, _ = out.frames[0, y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(float).mean(axis=0)
        assert leaf < red * 1.15, name


@pytest.mark.parametrize("prop", [p for p in PROPS if p != "none"])
def test_props_belong_to_the_subject(prop):
    identity, scene, acted = _clip(10, dynamic=False)
    without, held = (
        render(identity, Scene.from_dict({**scene.to_dict(), "prop": p}), acted[:1], 128, 192) for p in ("none", prop)
    )
    changed = (np.abs(held.frames[0].astype(int) - without.frames[0]).sum(axis=-1) > 60) & (held.subject_mask[0] > 0)
    assert changed.sum() > 100
    assert np.all(held.subject_mask >= without.subject_mask)


@pytest.mark.parametrize("foreground", [f for f in FOREGROUNDS if f != "none"])
def test_things_before_the_character_move_only_if_dynamic(foreground):
    identity, scene, acted = _clip(10)
    moving = _held(acted, time=[3.0, 3.7])
    for dynamic in (False, True):
        values = {**scene.to_dict(), "place": "backdrop", "dynamic": dynamic, "flicker": 0.0}
        bare, covered = (
            render(identity, Scene.from_dict({**values, "foreground": f}), moving, 128, 192)
            for f in ("none", foreground)
        )
        assert not np.array_equal(bare.frames, covered.frames)
        assert np.all(covered.subject_mask <= bare.subject_mask)
        assert np.array_equal(covered.frames[0], covered.frames[1]) != dynamic
        # Leaves hide what is behind them; blurred lights let it through.
        hidden = covered.foreground_mask.astype(bool)
        assert hidden.any() == (foreground == "leaves") and not bare.foreground_mask.any()
        assert not (hidden & covered.subject_mask.astype(bool)).any()
        assert np.array_equal(covered.subject_mask[~hidden], bare.subject_mask[~hidden])
        assert (covered.frames != bare.frames).any(axis=-1)[hidden].sum() >= 0.99 * hidden.sum()
