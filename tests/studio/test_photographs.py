"""A still talks: what moves, what stays, and whether the truth says so. The face is an oval with eyes and lips."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hallo3.errors import UserError
from hallo3.studio import photographs
from hallo3.studio.performance import Performance
from hallo3.studio.photographs import FaceLabel, Framing, animate, draw_framing, face_labels, find_photographs
from hallo3.studio.skeleton import KEYPOINTS

HEIGHT, WIDTH = 64, 96
LABEL = FaceLabel(
    "a.jpg", "0" * 64, (0.35, 0.2, 0.3, 0.6), (0.5, 0.64), 0.12, (0.43, 0.42), (0.57, 0.42), False, "somewhere", "train"
)
FRAMING = Framing(step=300 / WIDTH, origin=(0.0, 0.0), window=(0.0, 0.0, float(WIDTH), float(HEIGHT)))


@pytest.fixture(scope="module")
def picture():
    """300 × 200: skin-coloured oval, dark eyes, red lips, before a striped wall."""
    image = Image.new("RGB", (300, 200), (70, 90, 120))
    draw = ImageDraw.Draw(image)
    for x in range(0, 300, 20):
        draw.rectangle([x, 0, x + 9, 199], fill=(100, 120, 150))
    draw.ellipse([105, 40, 195, 160], fill=(220, 180, 160))
    for x in (129, 171):
        draw.ellipse([x - 7, 80, x + 7, 88], fill=(30, 20, 20))
    draw.ellipse([132, 122, 168, 134], fill=(180, 60, 60))
    return np.asarray(image)


def motion(frames=4, **tracks):
    names = Performance.__dataclass_fields__
    values = {name: np.zeros(frames, np.float32) for name in names} | {"width": np.full(frames, 0.5, np.float32)}
    return Performance(**values | {name: np.asarray(track, np.float32) for name, track in tracks.items()})


def inside(box, frame):
    x, y, w, h = (round(float(value)) for value in box)
    return frame[y : y + h, x : x + w].astype(int)


def test_the_mouth_opens_and_nothing_else_moves(picture):
    result = animate(picture, LABEL, FRAMING, motion(opening=[0, 0.4, 0.8, 0]), HEIGHT, WIDTH)
    still = np.asarray(Image.fromarray(picture).resize((WIDTH, HEIGHT), Image.Resampling.BOX)).astype(int)
    assert np.abs(result.frames[0].astype(int) - still).mean() < 3
    np.testing.assert_array_equal(result.frames[0], result.frames[3])
    dark = [(inside(result.mouth_box[index], result.frames[index]).max(axis=2) < 70).mean() for index in range(3)]
    assert dark[0] == 0 < dark[1] < 0.03 < dark[2]
    change = np.abs(result.frames[2].astype(int) - result.frames[0]).sum(axis=2)
    assert change[30:50, 40:56].max() > 200
    assert change[:25].max() == 0  # eyes and forehead
    assert change[:, :20].max() == 0  # the wall
    assert list(result.lip_gap) == [*sorted(result.lip_gap[:3]), 0.0]
    assert result.face_box[2][3] > result.face_box[0][3]


def dark_width(result, index):
    return (inside(result.mouth_box[index], result.frames[index]).max(axis=2) < 90).any(axis=0).sum()


def test_spread_mouths_are_wider_than_round_ones(picture):
    result = animate(picture, LABEL, FRAMING, motion(2, opening=[0.6, 0.6], width=[0, 1]), HEIGHT, WIDTH)
    assert dark_width(result, 1) > dark_width(result, 0) + 2


def test_lids_close(picture):
    result = animate(picture, LABEL, FRAMING, motion(2, blink=[0, 1]), HEIGHT, WIDTH)
    eyes = [(frame[24:29, 36:60].max(axis=2) < 80).sum() for frame in result.frames]
    assert eyes[1] < 0.5 * eyes[0]


@pytest.mark.parametrize("track", ["yaw", "roll", "head_x", "head_y", "pitch"])
def test_the_head_moves_before_a_still_wall(picture, track):
    amount = 0.12 if track == "yaw" else 0.06
    result = animate(picture, LABEL, FRAMING, motion(2, **{track: [-amount, amount]}), HEIGHT, WIDTH)
    change = np.abs(np.diff(result.frames.astype(int), axis=0)[0]).sum(axis=2)
    assert change[22:30, 36:60].max() > 60  # the eyes moved
    assert change[:, :4].max() == 0 == change[:, -4:].max()
    if track == "yaw":
        moved = np.diff(result.face_box[:, 0])[0]
        assert 0.3 < moved < 6


def test_the_box_follows_the_lips(picture):
    """The darkest pixels of an open mouth lie around the middle of its box, wherever the head goes."""
    result = animate(
        picture,
        LABEL,
        FRAMING,
        motion(3, opening=[0.7] * 3, head_x=[-0.08, 0, 0.08], yaw=[-0.1, 0, 0.1]),
        HEIGHT,
        WIDTH,
    )
    for index in range(3):
        rows, columns = np.nonzero(inside(result.mouth_box[index], result.frames[index]).max(axis=2) < 90)
        _, _, w, h = result.mouth_box[index]
        assert abs(columns.mean() + 0.5 - w / 2) < 0.12 * w
        assert abs(rows.mean() + 0.5 - h / 2) < 0.25 * h


def test_keypoints_are_where_the_features_went(picture):
    """Eyes are the dark spots of the upper face, the lips' edges enclose the dark of the open mouth."""
    tracks = {"opening": [0.7] * 3, "head_x": [-0.08, 0, 0.08], "yaw": [-0.1, 0, 0.1], "roll": [-0.06, 0, 0.06]}
    result = animate(picture, LABEL, FRAMING, motion(3, **tracks), HEIGHT, WIDTH)
    for frame, points, gap in zip(result.frames.astype(int), result.keypoints, result.lip_gap, strict=True):
        at = dict(zip(KEYPOINTS, points, strict=True))
        for name in ("eye_left", "eye_right"):
            x, y = at[name].astype(int)
            rows, columns = np.nonzero(frame[y - 4 : y + 5, x - 4 : x + 5].max(axis=2) < 90)
            assert np.hypot(columns.mean() - 4, rows.mean() - 4) < 1.5, name
        middle = (at["lip_upper"] + at["lip_lower"]) / 2
        rows, columns = np.nonzero(frame[38:56, 30:66].max(axis=2) < 90)
        assert np.hypot(columns.mean() + 30.5 - middle[0], rows.mean() + 38.5 - middle[1]) < 1.5
        assert np.linalg.norm(at["lip_lower"] - at["lip_upper"]) == pytest.approx(gap, abs=0.01)
        assert at["mouth_left"][0] < middle[0] < at["mouth_right"][0] and at["chin"][1] > at["lip_lower"][1]
        assert all(np.isnan(at[name]).all() for name in ("nose", "head_top", "neck", "shoulder_left", "hand"))


def test_the_corners_of_the_mouth_go_with_its_width(picture):
    result = animate(picture, LABEL, FRAMING, motion(3, opening=[0.5] * 3, width=[0, 0.5, 1]), HEIGHT, WIDTH)
    left, right = (result.keypoints[:, KEYPOINTS.index(name), 0] for name in ("mouth_left", "mouth_right"))
    assert list(right - left) == sorted(right - left)
    assert (right - left)[1] == pytest.approx(LABEL.mouth_width * WIDTH, rel=0.01)
    assert not result.foreground_mask.any() and result.foreground_mask.shape == result.subject_mask.shape


def test_bars_stay_black(picture):
    framing = Framing(step=200 / HEIGHT, origin=(0.0, 0.0), window=(16.0, 0.0, 80.0, 64.0))
    result = animate(picture, LABEL, framing, motion(3, yaw=[-0.3, 0, 0.3], camera_x=[-1, 0, 1]), HEIGHT, WIDTH)
    assert result.frames[:, :, :16].max() == 0 == result.frames[:, :, 80:].max()
    assert result.frames[:, :, 16:80].min(axis=(0, 1, 2)).max() > 0
    assert result.subject_mask[:, :, :16].max() == 0


def test_framings_hold_the_face():
    rng = np.random.default_rng(0)
    padded = 0
    for _ in range(200):
        size = (int(rng.integers(200, 700)), int(rng.integers(200, 700)))
        w, h = rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.6)
        x, y = rng.uniform(0.05, 0.95 - w), rng.uniform(0.05, 0.95 - h)
        label = FaceLabel("", "", (x, y, w, h), (x, y), 0.1, (x, y), (x, y), False, "", "train")
        framing = draw_framing(rng, label, size, 128, 192)
        left, top, right, bottom = framing.window
        padded += left > 0
        low = np.array(framing.origin) + framing.step * np.array([left, top])
        high = np.array(framing.origin) + framing.step * np.array([right, bottom])
        assert (low >= -1).all() and (high <= np.array(size) + 1).all()
        middle = np.array([(x + w / 2) * size[0], (y + h / 2) * size[1]])
        assert (low < middle).all() and (middle < high).all()
    assert 20 < padded < 180


def test_labels_are_sound():
    labels = face_labels()
    assert len(labels) == 174 and len({label.sha256 for label in labels}) == 174
    sources = {split: {label.source for label in labels if label.split == split} for split in ("train", "test")}
    assert sources["test"] and not sources["train"] & sources["test"]
    assert sum(label.split == "test" for label in labels) >= 30
    for label in labels:
        x, y, w, h = label.box
        assert x > -0.1 and y > -0.1 and x + w < 1.1 and y + h < 1.1
        assert x < label.left_eye[0] < label.right_eye[0] < x + w
        assert y < label.left_eye[1] < label.mouth[1] < y + h
        assert x < label.mouth[0] < x + w
        assert 0.08 * w < label.mouth_width < 0.7 * w
        mirror = label.mirrored()
        assert mirror.left_eye[0] < mirror.right_eye[0]
        np.testing.assert_allclose(mirror.mirrored().box, label.box, atol=1e-12)


def test_pictures_are_known_by_name_and_content(tmp_path, monkeypatch):
    import hashlib

    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    digest = hashlib.sha256((tmp_path / "a.jpg").read_bytes()).hexdigest()
    known = FaceLabel("a.jpg", digest, *([getattr(LABEL, name) for name in list(LABEL.__dict__)[2:]]))
    monkeypatch.setattr(photographs, "face_labels", lambda: (known, LABEL))
    (found,) = find_photographs(tmp_path)
    assert found.path == tmp_path / "a.jpg" and found.label is known
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="none of the labelled portraits"):
        find_photographs(tmp_path)
