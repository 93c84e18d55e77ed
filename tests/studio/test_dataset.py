"""Datasets: repeatable, resumable, whole; speech comes from a small recording, so no synthesiser is needed."""

import wave

import numpy as np
import pytest
from PIL import Image

from hallo3.bundles.layout import load_components
from hallo3.errors import UserError
from hallo3.studio import speech_clips
from hallo3.studio.dataset import DRAWINGS, TRUTH, Material, alone_in, embed_face, open_dataset, sample, write_dataset
from hallo3.studio.photographs import FaceLabel, Photograph
from hallo3.studio.scene import LIGHTS
from hallo3.studio.skeleton import KEYPOINTS
from hallo3.studio.voices import Recording
from hallo3.training.data import open_samples

SIZE = {"frames": 5, "height": 32, "width": 48}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    seconds = np.arange(32000) / 16000
    hum = np.sin(2 * np.pi * 140 * seconds) + np.sin(2 * np.pi * 700 * seconds) * (np.sin(2 * np.pi * 2 * seconds) > 0)
    with wave.open(str(folder / "hum.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((hum * 9000).astype("<i2").tobytes())
    Image.new("RGB", (120, 120), (200, 160, 140)).save(folder / "face.jpg")
    box = ((0.3, 0.2, 0.4, 0.6), (0.5, 0.65), 0.14, (0.4, 0.4), (0.6, 0.4))
    label = FaceLabel("face.jpg", "0" * 64, *box, False, "somewhere", "train")
    recorded = [Recording(folder / "hum.wav", split) for split in ("train", "test")]
    return Material(recorded, [Photograph(folder / "face.jpg", label)], photograph_share=0.5)


@pytest.fixture(autouse=True)
def only_recordings(monkeypatch):
    monkeypatch.setattr(speech_clips, "RECORDED_SHARE", 1.0)


def test_samples(material):
    kinds = set()
    for seed in range(6):
        made = sample(seed, split="train", material=material, **SIZE)
        kinds.add(made.source)
        assert made.frames.shape == (5, 32, 48, 3) and made.frames.dtype == np.uint8
        assert made.speech.shape == (5 * 640,) and made.speech.dtype == np.float32
        assert made.subject_mask.shape == (5, 32, 48) and made.subject_mask.max() == 1
        assert made.face_box.shape == made.mouth_box.shape == (5, 4)
        assert all(getattr(made, name).shape[0] == 5 for name in TRUTH)
        assert made.keypoints.shape == (5, len(KEYPOINTS), 2) and made.foreground_mask.shape == (5, 32, 48)
        assert np.isfinite(made.keypoints[:, KEYPOINTS.index("mouth_left")]).all()
        assert made.caption.endswith(".") and made.identity.startswith(made.source)
    assert kinds == {"drawn", "photograph"}
    again = sample(5, split="train", material=material, **SIZE)
    np.testing.assert_array_equal(again.frames, made.frames)
    assert again.caption == made.caption


def test_splits_are_disjoint(material):
    train, test = (sample(3, split=split, material=Material(material.recorded), **SIZE) for split in ("train", "test"))
    assert train.identity != test.identity
    assert not np.array_equal(train.frames, test.frames)
    # The only photograph is for training: tests are all drawn.
    assert {sample(seed, split="test", material=material, **SIZE).source for seed in range(4)} == {"drawn"}


def test_writing_is_resumed_and_read_lazily(material, tmp_path):
    folder, told = tmp_path / "data", []
    settings = {"split": "train", "material": material, **SIZE}
    assert write_dataset(folder, 3, 7, **settings, report=lambda *numbers: told.append(numbers)) == 3
    assert told == [(1, 3), (2, 3), (3, 3)]
    first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.npy")}
    # An interrupted clip is a folder with another ending; a finished one is kept.
    (folder / "000001").rename(folder / "000001.part")
    (folder / "000001.part" / "truth.npz").unlink()
    assert len(open_dataset(folder)) == 2
    assert write_dataset(folder, 3, 7, **settings) == 1
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.npy")} == first
    clips = open_dataset(folder)
    made = sample(7 * 1_000_003 + 2, split="train", material=material, **SIZE)
    assert isinstance(clips[2].frames, np.memmap)
    np.testing.assert_array_equal(clips[2].frames, made.frames)
    np.testing.assert_array_equal(clips[2].speech, made.speech)
    for name in TRUTH:
        np.testing.assert_array_equal(clips[2].truth(name), getattr(made, name))
    assert (clips[2].caption, clips[2].identity, clips[2].source) == (made.caption, made.identity, made.source)
    with pytest.raises(UserError, match="made with"):
        write_dataset(folder, 3, 8, **settings)


def test_a_seed_still_draws_what_it_drew(material):
    """Datasets grow over versions, and their clips must go together: who changes these numbers counts up DRAWINGS."""
    assert DRAWINGS == 3
    spoken = Material(material.recorded)
    made = [sample(seed, split="train", material=spoken, light="steady", camera="drift", **SIZE) for seed in (11, 12)]
    assert [clip.caption for clip in made] == [
        "On a meadow below the mountains, a man with short black hair, stubble and brown skin is speaking to the "
        "camera, while clouds drift across the sky, behind soft lights.",
        "A boy with blue curls is talking while holding a microphone, seen from far below by the sea. A motionless "
        "sea in the background.",
    ]
    # To a twentieth of a grey level and of a pixel: another processor may round otherwise.
    colours = np.array([clip.frames.mean(axis=(0, 1, 2)) for clip in made])
    np.testing.assert_allclose(colours, [[151.320, 148.425, 155.805], [135.255, 156.187, 168.438]], atol=0.05)
    mouths = [[15.703, 19.634, 9.207, 6.725], [19.538, 14.283, 8.835, 6.664]]
    np.testing.assert_allclose([clip.mouth_box[0] for clip in made], mouths, atol=0.05)
    lit = sample(11, split="train", material=spoken, camera="drift", **SIZE)
    assert lit.caption == made[0].caption + " Harsh light from the right."
    assert lit.meta["scene"]["lighting"] == "harsh" and np.array_equal(lit.mouth_box, made[0].mouth_box)


def test_lights_and_cameras_are_drawn_but_where_clips_are_compared(material):
    wishes = {"split": "train", "material": Material(material.recorded), **SIZE}
    drawn = [sample(seed, **wishes) for seed in range(40)]
    kinds = [clip.meta["scene"]["lighting"] for clip in drawn]
    assert set(kinds) == set(LIGHTS) and 20 < kinds.count("steady") < 38
    assert all(clip.light.shape == (5, 4) and np.isfinite(clip.light).all() for clip in drawn)
    harsh = kinds.index("harsh")
    assert sample(harsh, style="calm", **wishes).meta["scene"]["lighting"] == "steady"
    assert all(clip.camera.shape == (5, 3) and np.isfinite(clip.camera).all() for clip in drawn)
    zoomed = [index for index, clip in enumerate(drawn) if np.ptp(clip.camera[:, 2])]
    assert 0 < len(zoomed) < 10
    assert (sample(zoomed[0], style="calm", **wishes).camera[:, 2] == 1).all()
    assert np.ptp(sample(zoomed[0], style="calm", camera="push", **wishes).camera[:, 2])
    assert sample(harsh, style="calm", light="lamp", **wishes).meta["scene"]["lighting"] == "lamp"


def test_the_same_person_before_surroundings_that_move_or_not(material):
    settings = {"split": "test", "material": Material(material.recorded), "place": "snow", **SIZE}
    moving, still = (sample(2, dynamic=dynamic, **settings) for dynamic in (True, False))
    assert moving.meta["scene"] == still.meta["scene"] | {"dynamic": True}
    for name in ("opening", "yaw", "subject_mask", "keypoints", "speech"):
        np.testing.assert_array_equal(getattr(moving, name), getattr(still, name), name)
    assert moving.caption != still.caption and "still" in still.caption
    assert not np.array_equal(moving.frames, still.frames)
    with pytest.raises(ValueError, match="place 'room'"):
        sample(2, split="test", place="room", dynamic=True, material=settings["material"], **SIZE)


@pytest.mark.parametrize("seed", range(3))
def test_views_can_be_asked_for(material, seed):
    views = {
        style: sample(seed, split="test", style=style, material=Material(material.recorded), **SIZE)
        for style in ("side", "high", "low")
    }
    assert np.abs(np.degrees(views["side"].yaw)).min() > 55
    assert np.degrees(views["high"].pitch).mean() < -5 < 5 < np.degrees(views["low"].pitch).mean()


def test_clips_of_an_older_version_are_still_read(material, tmp_path):
    write_dataset(tmp_path, 1, 7, split="train", material=Material(material.recorded), **SIZE)
    with np.load(tmp_path / "000000" / "truth.npz") as data:
        older = {name: data[name] for name in data if name not in ("keypoints", "foreground_mask")}
    np.savez_compressed(tmp_path / "000000" / "truth.npz", **older)
    (clip,) = open_dataset(tmp_path)
    assert clip.truth("opening").shape == (5,) and len(open_samples(tmp_path)) == 1
    with pytest.raises(UserError, match="has no keypoints"):
        clip.truth("keypoints")


def test_other_recordings_or_photographs_need_another_folder(material, tmp_path):
    settings = {"split": "train", **SIZE}
    write_dataset(tmp_path, 1, 7, material=material, **settings)
    assert write_dataset(tmp_path, 1, 7, material=material, **settings) == 0
    louder = tmp_path / "hum.wav"
    louder.write_bytes(material.recorded[0].path.read_bytes() + b"0" * 64)
    others = [
        Material(material.recorded, material.photographs, 0.25),
        Material(material.recorded, [], 0.5),
        Material([Recording(louder, one.split) for one in material.recorded], material.photographs, 0.5),
        Material([Recording(one.path, "train") for one in material.recorded], material.photographs, 0.5),
        None,
    ]
    for other in others:
        with pytest.raises(UserError, match="was made with"):
            write_dataset(tmp_path, 1, 7, material=other, **settings)


def test_one_process_at_a_time_writes_a_dataset(material, tmp_path):
    with alone_in(tmp_path), pytest.raises(UserError, match="another process writes"):
        write_dataset(tmp_path, 1, 7, split="train", material=material, **SIZE)
    assert not (tmp_path / "dataset.json").exists()
    assert write_dataset(tmp_path, 1, 7, split="train", material=material, **SIZE) == 1


def test_bad_recordings_are_said_in_a_line(tmp_path):
    with wave.open(str(tmp_path / "short.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(6400)) * 9000).astype("<i2").tobytes())
    material = Material([Recording(tmp_path / "short.wav", "train")])
    with pytest.raises(UserError, match=r"short\.wav: shorter than half a second"):
        sample(1, split="train", material=material, **SIZE)
    (tmp_path / "manifest.csv").write_text("name,origin\nshort.wav,here\n")
    with pytest.raises(UserError, match="columns file and repo"):
        Material.find(recorded=tmp_path)


def test_a_clip_holds_the_embedding_of_its_face(material, tmp_path):
    size = {"frames": 2, "height": 96, "width": 144}
    settings = {"split": "train", "material": Material(material.recorded), **size}
    write_dataset(tmp_path / "with", 3, 7, face_encoder="embedded", **settings)
    faces = np.stack([clip.face for clip in open_dataset(tmp_path / "with")])
    analyzer = load_components("embedded", ["face_encoder"])["face_encoder"]
    assert faces.shape == (3, analyzer.embedding_dim) and faces.dtype == np.float32 and np.isfinite(faces).all()
    again = sample(7 * 1_000_003 + 1, **settings)
    np.testing.assert_allclose(faces[1], embed_face(analyzer, again.frames[0], again.face_box[0]), rtol=1e-4, atol=1e-4)
    near, far = embed_face(analyzer, again.frames[1], again.face_box[1]), faces[2]
    assert np.linalg.norm(faces[1] - near) < 0.5 * np.linalg.norm(faces[1] - far), "of this person"
    with pytest.raises(UserError, match="was made with"):
        write_dataset(tmp_path / "with", 3, 7, **settings)
    write_dataset(tmp_path / "without", 1, 7, **settings)
    with pytest.raises(UserError, match="no face embedding"):
        open_dataset(tmp_path / "without")[0].face  # noqa: B018
    assert len(open_samples(tmp_path / "without")) == 1


def test_bad_folders(tmp_path):
    with pytest.raises(UserError, match="no clips here"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match="no recordings here"):
        Material.find(recorded=tmp_path)
    with pytest.raises(UserError, match="none of the labelled portraits"):
        Material.find(photographs=tmp_path)
