"""Videos as training clips: real small files, drawn by the studio and written by the project's own writer."""

import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import tiny
from hallo3.bundles.places import embedded_bundle
from hallo3.conditions.face import EmbeddedFaceAnalyzer, overlap
from hallo3.errors import UserError
from hallo3.media.sound import speech_from_samples
from hallo3.media.video import VideoWriter
from hallo3.studio.dataset import Material, Sample, StoredSample, open_dataset, sample
from hallo3.training import data
from hallo3.training.imported import bucket_sizes, estimate_mouth, follow_face, import_videos, nearest_size
from hallo3.training.prepare import prepare_sample

SIZES = bucket_sizes(128, 192)


@pytest.fixture(scope="module")
def analyzer() -> EmbeddedFaceAnalyzer:
    return EmbeddedFaceAnalyzer.from_pretrained(embedded_bundle() / "face_encoder")


@pytest.fixture(scope="module")
def people(recordings: Path) -> dict[str, Sample]:
    """Two drawn people of 20 frames, one in landscape and one in portrait format."""
    material = Material.find(recordings)
    sizes = {"wide": (160, 240), "tall": (192, 128)}
    return {
        name: sample(seed, split="train", frames=20, height=height, width=width, material=material)
        for seed, (name, (height, width)) in enumerate(sizes.items())
    }


def write(path: Path, frames: np.ndarray, speech: np.ndarray | None, fps: int = 25) -> None:
    sound = None if speech is None else speech_from_samples(speech, 16_000)
    with VideoWriter(path, frames.shape[2], frames.shape[1], fps=fps, speech=sound, crf=12) as writer:
        writer.write_clip(frames)
        writer.finish()


@pytest.fixture
def folder(tmp_path: Path, people: dict[str, Sample]) -> Path:
    """The published layout with both people."""
    for name in ("videos", "caption"):
        (tmp_path / "source" / name).mkdir(parents=True)
    for name, person in people.items():
        write(tmp_path / "source" / "videos" / f"{name}.mp4", person.frames, person.speech)
        (tmp_path / "source" / "caption" / f"{name}.txt").write_text(f"A {name} person\ntalks.\n")
    return tmp_path / "source"


def clips(out: Path) -> dict[str, StoredSample]:
    return {clip.folder.name: clip for clip in open_dataset(out)}


def test_shapes_of_clips() -> None:
    assert SIZES == ((128, 192), (144, 144), (192, 128))
    assert bucket_sizes(480, 720) == ((480, 720), (576, 576), (720, 480))
    assert [nearest_size(aspect, SIZES) for aspect in (16 / 9, 1.1, 9 / 16)] == list(SIZES)
    # No more tokens than the canvas: the networks' tables of positions hold those.
    assert all(height * width <= 128 * 192 for height, width in SIZES)


def test_videos_become_clips(
    folder: Path, people: dict[str, Sample], analyzer: EmbeddedFaceAnalyzer, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    done = import_videos(folder, tmp_path / "out", analyzer, sizes=SIZES, frames=9, report=lambda *n: told.append(n))
    assert (done.clips, done.videos, done.skipped, done.notes, told) == (4, 2, 0, [], [(1, 2), (2, 2)])
    found = clips(tmp_path / "out")
    assert list(found) == ["0000000000", "0000000001", "0000100000", "0000100001"]
    assert [clip.frames.shape for clip in found.values()] == [(9, 192, 128, 3)] * 2 + [(9, 128, 192, 3)] * 2
    clip, person = found["0000000001"], people["tall"]
    assert np.abs(clip.frames.astype(int) - person.frames[9:18]).mean() < 5
    assert clip.info["made_from"]["video"] == "tall.mp4" and clip.info["made_from"]["start"] == 9 / 25
    assert (clip.source, clip.identity, clip.caption) == ("video", "video-tall", "A tall person talks.")
    heard = clip.speech
    assert heard.shape == (9 * 640,) and heard.dtype == np.float32
    assert np.corrcoef(heard, person.speech[9 * 640 : 18 * 640])[0, 1] > 0.95
    for index in (0, 8):
        assert overlap(clip.truth("face_box")[index], person.face_box[9 + index]) > 0.5
        assert overlap(clip.truth("mouth_box")[index], person.mouth_box[9 + index]) > 0.3
    assert clip.truth("opening").shape == clip.truth("phone_class").shape == (9,)
    with pytest.raises(UserError, match="has no lip_gap"):
        clip.truth("lip_gap")


def test_imported_clips_can_be_prepared(folder: Path, analyzer: EmbeddedFaceAnalyzer, tmp_path: Path) -> None:
    import_videos(folder, tmp_path / "out", analyzer, sizes=SIZES, frames=9)
    parts: dict[str, Any] = tiny.components()
    samples = data.open_samples(tmp_path / "out")
    assert [s.size for s in samples] == [(192, 128)] * 2 + [(128, 192)] * 2
    tables = prepare_sample(samples[0], parts, 9, tiny.WORDS, 0)
    assert tables["latents"].shape == (1, 3, 16, 24, 16) and tables["references"].shape == (8, 1, 16, 24, 16)


def test_another_frame_rate(
    folder: Path, people: dict[str, Sample], analyzer: EmbeddedFaceAnalyzer, tmp_path: Path
) -> None:
    for path in folder.glob("*/*"):
        path.unlink()
    person = people["wide"]
    # Shown at 50 a second, every frame twice.
    write(folder / "videos" / "fast.mp4", np.repeat(person.frames, 2, axis=0), person.speech, fps=50)
    (folder / "caption" / "fast.txt").write_text("A person talks.")
    assert import_videos(folder, tmp_path / "out", analyzer, sizes=SIZES, frames=17).clips == 1
    (clip,) = clips(tmp_path / "out").values()
    means = person.frames[:17].astype(float).mean((1, 2, 3))
    np.testing.assert_allclose(clip.frames.astype(float).mean((1, 2, 3)), means, atol=1.5)
    assert np.corrcoef(clip.speech, person.speech[: 17 * 640])[0, 1] > 0.95


def test_a_sound_that_begins_late_stays_late(
    folder: Path, people: dict[str, Sample], analyzer: EmbeddedFaceAnalyzer, tmp_path: Path
) -> None:
    late = 0.24
    with av.open(folder / "videos" / "wide.mp4") as source, av.open(tmp_path / "late.mp4", "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                shift = round(late / packet.time_base) if packet.stream.type == "audio" else 0
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream_index]
                target.mux(packet)
    (tmp_path / "late.mp4").replace(folder / "videos" / "wide.mp4")
    import_videos(folder, tmp_path / "out", analyzer, sizes=SIZES[:1], frames=17)
    heard, spoken = clips(tmp_path / "out")["0000100000"].speech, people["wide"].speech
    lag = int(np.correlate(heard, spoken, "full").argmax()) - len(spoken) + 1
    assert abs(lag - late * 16_000) < 32, "two milliseconds: a packet's time is a rounded number"


def test_what_is_no_use_is_skipped_and_named(
    folder: Path, people: dict[str, Sample], analyzer: EmbeddedFaceAnalyzer, tmp_path: Path
) -> None:
    videos, person = folder / "videos", people["wide"]
    grey = np.full_like(person.frames, 90)
    write(videos / "mute.mp4", person.frames, None)
    write(videos / "short.mp4", person.frames[:6], person.speech[: 6 * 640])
    write(videos / "empty.mp4", grey, person.speech)
    write(videos / "leaves.mp4", np.concatenate([person.frames[:9], grey[:9]]), person.speech[: 18 * 640])
    good = (videos / "wide.mp4").read_bytes()
    for name in ("uncaptioned", "blank", "binary"):
        (videos / f"{name}.mp4").write_bytes(good)
    (videos / "cut.mp4").write_bytes(good[: len(good) // 2])
    (videos / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (videos / "nothing.mp4").touch()
    (videos / ".DS_Store").touch()
    for name in ("mute", "short", "empty", "leaves", "cut", "noise", "nothing"):
        (folder / "caption" / f"{name}.txt").write_text("A person talks.")
    (folder / "caption" / "blank.txt").write_text(" \n")
    (folder / "caption" / "binary.txt").write_bytes(b"\xff\xfe\xfa talks")
    done = import_videos(folder, tmp_path / "out", analyzer, sizes=SIZES, frames=9)
    assert (done.clips, done.videos, done.skipped) == (5, 3, 9)
    said = {
        "mute": "no sound",
        "short": "less than a clip",
        "empty": "no face to follow in 2 of 2 clips",
        "leaves": "no face to follow in 1 of 2 clips, from 0.4 s",
        "uncaptioned": "no such file",
        "blank": "caption is empty",
        "binary": "no UTF-8",
        "cut": "damaged",
        "noise": "cannot be read",
        "nothing": "empty file",
    }
    assert len(done.notes) == len(said) and not any("\n" in note for note in done.notes)
    for name, words in said.items():
        assert any(f"{name}." in note and words in note for note in done.notes), "\n".join(done.notes)
    # A second import says the same, and makes nothing anew.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*.npy")}
    assert import_videos(folder, tmp_path / "out", analyzer, sizes=SIZES, frames=9) == done
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*.npy")} == before


def test_an_interrupted_import_goes_on(
    folder: Path, people: dict[str, Sample], analyzer: EmbeddedFaceAnalyzer, tmp_path: Path
) -> None:
    class Interrupted(EmbeddedFaceAnalyzer):
        left = 5

        def detect(self, image: Any) -> Any:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return super().detect(image)

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        import_videos(folder, out, Interrupted(analyzer.locator, analyzer.encoder), sizes=SIZES, frames=9)
    assert list(clips(out)) == ["0000000000"]
    written = (out / "0000000000" / "frames.npy").stat().st_mtime_ns
    # A video that comes before the one begun takes another number.
    shutil.copy(folder / "videos" / "wide.mp4", folder / "videos" / "another.mp4")
    shutil.copy(folder / "caption" / "wide.txt", folder / "caption" / "another.txt")
    assert import_videos(folder, out, analyzer, sizes=SIZES, frames=9).clips == 6
    found = clips(out)
    assert [clip.identity for clip in found.values()] == [
        *("video-tall", "video-tall", "video-another", "video-another", "video-wide", "video-wide")
    ]
    assert (out / "0000000000" / "frames.npy").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="choose another folder"):
        import_videos(folder, out, analyzer, sizes=SIZES, frames=5)
    (out / "imported" / "00001.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        import_videos(folder, out, analyzer, sizes=SIZES, frames=9)


def test_a_face_is_followed_and_not_changed_for_another(
    people: dict[str, Sample], analyzer: EmbeddedFaceAnalyzer
) -> None:
    frames = people["wide"].frames
    boxes = follow_face(analyzer, frames)
    assert boxes is not None and boxes.shape == (20, 4) and boxes.dtype == np.float32
    # Pushed to the side at once, it is another face for all that is known.
    moved = frames.copy()
    moved[10:] = np.roll(frames[10:], 110, axis=2)
    assert follow_face(analyzer, moved) is None


def test_the_mouth_is_low_in_the_face() -> None:
    mouth = estimate_mouth(np.array([[10, 20, 100, 200]], np.float32))
    np.testing.assert_allclose(mouth, [[29, 146, 62, 76]], rtol=1e-5)


def test_folders_that_are_none(tmp_path: Path, analyzer: EmbeddedFaceAnalyzer) -> None:
    with pytest.raises(UserError, match="no folder videos"):
        import_videos(tmp_path, tmp_path / "out", analyzer, sizes=SIZES)
    (tmp_path / "videos").mkdir()
    with pytest.raises(UserError, match="no videos here"):
        import_videos(tmp_path, tmp_path / "out", analyzer, sizes=SIZES)
    assert not (tmp_path / "out").exists()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "dataset.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(UserError, match="choose another folder"):
        import_videos(tmp_path, tmp_path / "drawn", analyzer, sizes=SIZES)
