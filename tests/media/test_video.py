import fcntl
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_samples import only_user_errors, pictures, tone, write_video

from hallo3.errors import UserError
from hallo3.media.fragments import boxes
from hallo3.media.progress import Written, read_written
from hallo3.media.provenance import provenance_tags, read_provenance
from hallo3.media.sound import speech_from_samples
from hallo3.media.video import BeingWritten, VideoWriter, probe, read_video, stream_frames
from waiting import killed_at

WIDTH, HEIGHT = 64, 48
CLIPS = [9, 12, 12, 5]
FRAMES = sum(CLIPS)
SECONDS = FRAMES / 25 - 0.013  # a speech that ends inside the last frame


def speech(seconds=SECONDS, rate=16_000, channels=1):
    return speech_from_samples(tone(seconds, rate, channels), rate)


def writer(path, **options):
    settings = {"speech": speech(), "fingerprint": '{"seed": 3, "steps": 20}', "metadata": {"comment": "test"}}
    return VideoWriter(path, WIDTH, HEIGHT, **(settings | options))


def carry(clip):
    """What a pipeline keeps: the last frames, exactly, and the state of its random numbers."""
    random = np.random.default_rng(clip)
    return {"motion": random.normal(size=(2, 3, 5)).astype(np.float32), "random": random.bytes(16) and np.arange(clip)}


def write(target, clips=CLIPS, begin=0):
    first = sum(clips[:begin])
    for number in range(begin, len(clips)):
        target.write_clip(pictures(clips[number], WIDTH, HEIGHT, first), carry(number + 1))
        first += clips[number]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of an uninterrupted result, and of the unfinished file before `finish`."""
    path = tmp_path_factory.mktemp("whole") / "a.mp4"
    with writer(path) as target:
        write(target)
        part = target.part.read_bytes()
        target.finish()
    return path.read_bytes(), part


def same_content(path, other):
    one, two = read_video(path), read_video(other)
    np.testing.assert_array_equal(one.frames, two.frames)
    np.testing.assert_array_equal(one.sound, two.sound)


@pytest.mark.parametrize(
    ("rate", "channels", "wanted"), [(16_000, 1, 48_000), (44_100, 2, 44_100), (96_000, 2, 48_000)]
)
def test_picture_and_sound_start_and_end_together(tmp_path, rate, channels, wanted):
    with writer(tmp_path / "a.mp4", speech=speech(rate=rate, channels=channels)) as target:
        write(target)
        assert target.finish() == tmp_path / "a.mp4"
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.fps, info.frames) == (WIDTH, HEIGHT, 25, FRAMES)
    assert (info.codec, info.profile, info.pixel_format) == ("h264", "High", "yuv420p")
    assert (info.sound.codec, info.sound.sample_rate, info.sound.channels) == ("aac", wanted, channels)
    assert info.start == info.sound.start == 0
    assert info.seconds == pytest.approx(FRAMES / 25, abs=1e-6)
    assert info.sound.seconds == pytest.approx(FRAMES / 25, abs=1e-4)
    assert abs(info.seconds - SECONDS) < 1 / 25
    assert not list(tmp_path.glob("*.part*"))


def test_the_boxes_of_the_result_say_the_same(whole):
    """Read without FFmpeg: lengths in the headers, and the edit list that cuts the sound encoder's run-in."""
    data, length = whole[0], FRAMES / 25
    moov = child(data, 0, len(data), b"moov")[0]
    clock, duration = struct.unpack_from(">II", data, child(data, *moov, b"mvhd")[0][0] + 12)
    assert duration / clock == length
    edits = []
    for track in child(data, *moov, b"trak"):
        edts = child(data, *track, b"edts")[0]
        count, shown, begin = struct.unpack_from(">IIi", data, child(data, *edts, b"elst")[0][0] + 4)
        mdia = child(data, *track, b"mdia")[0]
        rate, media = struct.unpack_from(">II", data, child(data, *mdia, b"mdhd")[0][0] + 12)
        assert count == 1 and shown / clock == length
        assert (media - begin) / rate == length
        edits.append(begin)
    assert edits == [0, 1024]


def child(data, start, end, name):
    """Insides of the boxes of this name in data[start:end]."""
    return [(at + 8, stop) for found, at, stop in boxes(data, start, end) if found == name]


def test_a_click_is_heard_when_the_flash_is_seen(tmp_path):
    samples = np.full(48_000, 1e-3, np.float32)
    samples[24_000:24_480] = 0.9
    frames = np.zeros((25, HEIGHT, WIDTH, 3), np.uint8)
    frames[12:13] = 255  # frame 12.5 would be 0.5 s: seen from 0.48 s
    samples = np.roll(samples, -960)
    with writer(tmp_path / "a.mp4", speech=speech_from_samples(samples, 48_000)) as target:
        target.write_clip(frames[:10])
        target.write_clip(frames[10:])
        target.finish()
    with av.open(str(tmp_path / "a.mp4")) as container:
        flash = next(frame.time for frame in container.decode(video=0) if frame.to_ndarray(format="gray").mean() > 128)
    with av.open(str(tmp_path / "a.mp4")) as container:
        blocks = [(frame.time, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
    assert blocks[0][0] == 0
    click = next(
        start + np.argmax(np.abs(block) > 0.3) / 48_000 for start, block in blocks if np.abs(block).max() > 0.3
    )
    assert flash == pytest.approx(0.48) and click == pytest.approx(0.48, abs=0.002)


def test_the_sound_is_the_speech(tmp_path):
    loud = speech(rate=44_100, channels=2)
    with writer(tmp_path / "a.mp4", speech=loud) as target:
        write(target)
        target.finish()
    video = read_video(tmp_path / "a.mp4")
    truth = np.concatenate(list(loud.blocks(44_100)), axis=1)
    assert video.sample_rate == 44_100 and video.sound.shape[0] == 2
    for heard, said in zip(video.sound, truth, strict=True):
        assert np.corrcoef(heard[: len(said)], said)[0, 1] > 0.999
    assert np.abs(video.sound[:, truth.shape[1] + 1500 :]).max(initial=0) < 0.01


@pytest.mark.parametrize("seconds", [0.5, 9.0])
def test_the_sound_ends_with_the_picture_whatever_its_length(tmp_path, seconds):
    with writer(tmp_path / "a.mp4", speech=speech(seconds)) as target:
        write(target)
        target.finish()
    assert probe(tmp_path / "a.mp4").sound.seconds == pytest.approx(FRAMES / 25, abs=1e-4)


def test_a_video_without_sound(tmp_path):
    with writer(tmp_path / "a.mp4", speech=None) as target:
        write(target, [3, 2])
        target.finish()
    assert probe(tmp_path / "a.mp4").sound is None
    video = read_video(tmp_path / "a.mp4")
    assert video.sound is None and len(video.frames) == 5


def test_frames_come_back(whole, tmp_path):
    (tmp_path / "a.mp4").write_bytes(whole[0])
    video = read_video(tmp_path / "a.mp4", sample_rate=16_000)
    assert video.fps == Fraction(25) and video.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert video.frames.dtype == np.uint8 and video.sound.shape[1] == pytest.approx(16_000 * FRAMES / 25, abs=400)
    assert np.abs(video.frames - pictures(FRAMES, WIDTH, HEIGHT).astype(float)).mean() < 4


def test_the_result_can_be_played_before_it_is_loaded(whole):
    names = [name for name, _, _ in boxes(whole[0])]
    assert names[0] == b"ftyp" and names.index(b"moov") < names.index(b"mdat")
    assert b"avc1" in whole[0][:4000] and b"moof" not in names


def test_the_unfinished_file_plays_after_every_clip(tmp_path):
    with writer(tmp_path / "a.mp4") as target:
        for number in range(len(CLIPS)):
            write(target, CLIPS[: number + 1], number)
            info = probe(target.part)
            assert info.frames == sum(CLIPS[: number + 1])
            assert info.sound.start == 0 and info.sound.seconds >= info.seconds
            assert info.metadata["comment"] == "test"
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.parametrize("clips", range(len(CLIPS) + 1))
@pytest.mark.parametrize("tail", ["nothing", "half a clip", "noise"])
def test_a_resumed_run_gives_the_same_file(tmp_path, whole, clips, tail):
    path = tmp_path / "a.mp4"
    with writer(path) as target:
        write(target, CLIPS[:clips])
        part = target.part.read_bytes()
    if clips:  # a run killed at once leaves nothing to resume, and nothing else
        rest = {"nothing": b"", "half a clip": whole[1][len(part) : len(part) + 900], "noise": os.urandom(5000)}
        target.part.write_bytes(part + rest[tail])
    assert target.state.exists() == bool(clips)
    assert read_written(target.state) == (Written(clips, sum(CLIPS[:clips]), len(part)) if clips else None)
    with writer(path, resume=True) as target:
        assert (target.progress.clips, target.progress.frames) == (clips, sum(CLIPS[:clips]))
        for name, array in carry(clips).items() if clips else ():
            np.testing.assert_array_equal(target.progress.carry[name], array)
            assert target.progress.carry[name].dtype == array.dtype
        write(target, begin=clips)
        assert target.part.read_bytes() == whole[1]
        target.finish()
    assert path.read_bytes() == whole[0]
    (tmp_path / "whole.mp4").write_bytes(whole[0])
    same_content(path, tmp_path / "whole.mp4")


def test_a_run_that_is_killed_again_and_again(tmp_path, whole):
    """A real process, killed without warning while it writes: when a clip is on the disk, and its state is not.

    Then another, which is killed a clip later, and one that ends.
    """
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys
            sys.path[:0] = sys.argv[2:]
            import test_video as t
            with t.writer(sys.argv[1], resume=True) as target:
                for clip in range(target.progress.clips, len(t.CLIPS)):
                    t.write(target, t.CLIPS[: clip + 1], clip)
                target.finish()
            """
        )
    )
    path = tmp_path / "a.mp4"
    command = [str(script), str(path), *map(str, Path(__file__).parents[:2])]
    killed = killed_at("os.rename", "*/a.mp4.part.state", 2, *command)
    for clips in (1, 2):
        assert subprocess.run(killed, timeout=120).returncode == -signal.SIGKILL
        assert read_written(tmp_path / "a.mp4.part.state").clips == clips
    subprocess.run([sys.executable, *command], check=True, timeout=120)
    assert path.read_bytes() == whole[0]


def test_killed_while_finishing(tmp_path, whole):
    path = tmp_path / "a.mp4"
    with writer(path) as target:
        write(target)
    (tmp_path / "a.mp4.part.tmp").write_bytes(whole[0][:500])
    with writer(path, resume=True) as target:
        assert target.progress.frames == FRAMES
        target.finish()
    assert path.read_bytes() == whole[0]
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_resuming_without_anything_begun_starts(tmp_path, whole):
    with writer(tmp_path / "a.mp4", resume=True) as target:
        assert target.progress.frames == 0
        write(target)
        target.finish()
    assert (tmp_path / "a.mp4").read_bytes() == whole[0]


def begun(tmp_path):
    with writer(tmp_path / "a.mp4") as target:
        write(target, CLIPS[:2])
    return target


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fingerprint": '{"seed": 4, "steps": 20}'}, "seed was 3, now 4"),
        ({"fingerprint": '{"seed": 3, "steps": 20, "prompt": "hi"}'}, "prompt was not set, now hi"),
        ({"fingerprint": "another"}, "fingerprint was"),
        ({"crf": 20}, "quality was 18.0, now 20.0"),
        ({"fps": 24}, "fps was 25, now 24"),
        ({"speech": None}, "sound was 48000, now not set"),
        ({"metadata": {"comment": "of a later version"}}, "another version"),
    ],
)
def test_resuming_with_other_settings_is_refused(tmp_path, options, words):
    target = begun(tmp_path)
    before = target.part.read_bytes(), target.state.read_bytes()
    with pytest.raises(UserError, match=words) as caught:
        writer(tmp_path / "a.mp4", resume=True, **options)
    assert "\n" not in str(caught.value) and "--overwrite" in str(caught.value)
    assert (target.part.read_bytes(), target.state.read_bytes()) == before


def test_an_unfinished_video_is_never_overwritten_unasked(tmp_path):
    target = begun(tmp_path)
    before = target.part.read_bytes(), target.state.read_bytes()
    with pytest.raises(UserError, match="--resume"):
        writer(tmp_path / "a.mp4")
    assert (target.part.read_bytes(), target.state.read_bytes()) == before
    with writer(tmp_path / "a.mp4", overwrite=True) as anew:
        assert anew.progress.frames == 0 and not anew.state.exists()


def test_damaged_unfinished_files(tmp_path):
    target = begun(tmp_path)
    part, state = target.part.read_bytes(), target.state.read_bytes()
    target.part.write_bytes(part[:-10])
    with pytest.raises(UserError, match="shorter than its state says"):
        writer(tmp_path / "a.mp4", resume=True)
    target.part.unlink()
    with pytest.raises(UserError, match="shorter than its state says"):
        writer(tmp_path / "a.mp4", resume=True)
    target.part.write_bytes(part)
    for damage in (state[:50], b"", b"x" * 200, state[:8] + b"{}" + state[10:], state.replace(b"clips", b"clops")):
        target.state.write_bytes(damage)
        with pytest.raises(UserError, match=r"damaged|--overwrite") as caught:
            writer(tmp_path / "a.mp4", resume=True)
        assert "\n" not in str(caught.value)
    assert target.part.read_bytes() == part


def test_damaged_states_never_raise_anything_else(tmp_path):
    target = begun(tmp_path)
    state = target.state.read_bytes()

    def resume(path):
        writer(tmp_path / "a.mp4", resume=True).close()

    def named(path):
        try:
            resume(path)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    assert only_user_errors(target.state, state, named) > 0


def test_two_runs_never_write_the_same_file(tmp_path):
    with writer(tmp_path / "a.mp4") as first:
        write(first, CLIPS[:1])
        for options in ({"resume": True}, {"overwrite": True}):
            with pytest.raises(UserError, match="another run"):
                writer(tmp_path / "a.mp4", **options)
        write(first, begin=1)
        first.finish()
    assert probe(tmp_path / "a.mp4").frames == FRAMES


class Raced(VideoWriter):
    """While this one finishes, others begin."""

    def __init__(self, path, moment, intrude, **options):
        super().__init__(path, WIDTH, HEIGHT, speech=speech(), fingerprint='{"seed": 3, "steps": 20}', **options)
        self.moment, self.intrude = moment, intrude

    def _remux(self, source, draft):
        if self.moment == "before the packets are copied":
            self.intrude()
        super()._remux(source, draft)
        if self.moment == "after the packets are copied":
            self.intrude()


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}, {}], ids=str)
@pytest.mark.parametrize("moment", ["before the packets are copied", "after the packets are copied", "while signing"])
def test_no_run_begins_while_another_finishes(tmp_path, moment, options):
    path, refused = tmp_path / "a.mp4", []

    def intrude():
        with pytest.raises(BeingWritten) as caught:
            writer(path, **options)
        refused.append(caught.value)

    def seal(draft, sealed):
        if moment == "while signing":
            intrude()
        sealed.write_bytes(draft.read_bytes())

    with Raced(path, moment, intrude) as target:
        write(target)
        target.finish(seal)
    assert refused and probe(path).frames == FRAMES
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_a_run_that_opened_what_another_was_about_to_remove(tmp_path, monkeypatch):
    """Between opening and locking, the first run ends: the second must not write into a file without a name."""
    path, lock = tmp_path / "a.mp4", fcntl.flock
    first = writer(path)
    write(first, CLIPS[:1])

    def late(file, how):
        if not first._file.closed:
            first.finish()
        return lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with writer(path, overwrite=True) as second:
        assert probe(path).frames == CLIPS[0] and second.part.exists()
        write(second)
        second.finish()
    assert probe(path).frames == FRAMES and os.listdir(tmp_path) == ["a.mp4"]


def test_a_run_that_gives_up_takes_nothing_from_another(tmp_path, monkeypatch):
    """It removes its empty file before others can open it, not after."""
    path, unlink = tmp_path / "a.mp4", Path.unlink
    first = writer(path)

    def meanwhile(name, **options):
        if name == first.part:
            with pytest.raises(BeingWritten):
                writer(path)
        unlink(name, **options)

    monkeypatch.setattr(Path, "unlink", meanwhile)
    first.close()
    assert os.listdir(tmp_path) == []


def test_an_unfinished_video_that_lost_frames_is_no_result(tmp_path):
    """As on a file system without locks, where another run may have begun it anew."""
    with writer(tmp_path / "a.mp4") as target:
        write(target, CLIPS[:1])
        short = target.part.read_bytes()
        write(target, CLIPS[:2], 1)
        target.part.write_bytes(short)
        with pytest.raises(UserError, match="holds 9 of the 21 frames"):
            target.finish()
    assert not (tmp_path / "a.mp4").exists()


def test_a_failure_while_rendering_keeps_what_is_done(tmp_path):
    with pytest.raises(KeyboardInterrupt), writer(tmp_path / "a.mp4") as target:
        write(target, CLIPS[:2])
        raise KeyboardInterrupt
    assert probe(tmp_path / "a.mp4.part").frames == sum(CLIPS[:2])
    with pytest.raises(RuntimeError), writer(tmp_path / "b.mp4"):
        raise RuntimeError("before the first clip")
    assert sorted(os.listdir(tmp_path)) == ["a.mp4.part", "a.mp4.part.state"]


def test_nothing_to_finish(tmp_path):
    with writer(tmp_path / "a.mp4") as target, pytest.raises(ValueError, match="no clip"):
        target.finish()
    assert os.listdir(tmp_path) == []


class LimitedDisk:
    """The system refuses to let any file grow beyond so many bytes, as a full disk does."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_disk_that_fills_up_keeps_the_clips_written(tmp_path, whole):
    path = tmp_path / "a.mp4"
    with writer(path) as target:
        write(target, CLIPS[:2])
        room = target.part.stat().st_size + 700
        with LimitedDisk(room), pytest.raises(UserError, match=r"21 frames are kept.*--resume") as caught:
            write(target, CLIPS, 2)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    with writer(path, resume=True) as target:
        assert target.progress.clips == 2
        write(target, begin=2)
        with LimitedDisk(len(whole[0]) // 2), pytest.raises(UserError, match=r"frames are kept.*--resume"):
            target.finish()
    assert sorted(os.listdir(tmp_path)) == ["a.mp4.part", "a.mp4.part.state"]
    with writer(path, resume=True) as target:
        target.finish()
    assert path.read_bytes() == whole[0]


def test_a_disk_too_full_for_the_state_keeps_the_state_before(tmp_path, whole):
    path = tmp_path / "a.mp4"
    with writer(path) as target:
        write(target, CLIPS[:2])
        before = target.state.read_bytes()
        large = {"motion": np.zeros(len(whole[1]), np.uint8)}
        with LimitedDisk(len(whole[1])), pytest.raises(UserError, match="21 frames are kept"):
            target.write_clip(pictures(CLIPS[2], WIDTH, HEIGHT, 21), large)
        assert target.state.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.mp4.part", "a.mp4.part.state"]
    with writer(path, resume=True) as target:
        write(target, begin=2)
        target.finish()
    assert path.read_bytes() == whole[0]


def test_a_disk_full_from_the_start(tmp_path):
    with LimitedDisk(100), pytest.raises(UserError, match="make room"):
        writer(tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == []


def test_an_existing_result_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the old one")
    with writer(path) as target:
        write(target, CLIPS[:1])
        assert path.read_bytes() == b"the old one"
        target.finish()
    assert probe(path).frames == CLIPS[0]


def test_the_provenance_is_in_the_result_and_in_the_unfinished_file(tmp_path):
    tags = provenance_tags(bundle="embedded", seed=7, settings={"steps": 20, "prompt": "smiles — «widely»"})
    with writer(tmp_path / "a.mp4", metadata=tags) as target:
        write(target, CLIPS[:1])
        assert read_provenance(target.part)["seed"] == 7
        target.finish()
    record = read_provenance(tmp_path / "a.mp4")
    assert record["settings"] == {"steps": 20, "prompt": "smiles — «widely»"}
    assert probe(tmp_path / "a.mp4").metadata["comment"].startswith("AI-generated")


def test_a_phone_s_turned_video_is_read_upright(tmp_path):
    path = write_video(tmp_path / "a.mp4", 0.2)
    upright = read_video(path).frames
    data = path.read_bytes()
    # The matrix of the track header: 90° clockwise, as phones write it.
    unit, turn = (0x10000, 0, 0, 0, 0x10000, 0), (0, 0x10000, 0, -0x10000, 0, 0)
    at = data.index(pack(*unit), data.index(b"tkhd"))
    path.write_bytes(data[:at] + pack(*turn) + data[at + 24 :])
    np.testing.assert_array_equal(read_video(path).frames, np.rot90(upright, -1, axes=(1, 2)))


def pack(*values):
    return b"".join(value.to_bytes(4, "big", signed=True) for value in values)


def test_files_that_are_no_video(tmp_path):
    (tmp_path / "text.mp4").write_text("no video" * 100)
    for path, words in [(tmp_path / "none.mp4", "no such file"), (tmp_path / "text.mp4", "cannot be read")]:
        for read in (probe, read_video, read_provenance):
            with pytest.raises(UserError, match=words):
                read(path)


def test_damaged_copies_give_a_video_or_a_user_error(tmp_path, whole):
    def read(path):
        probe(path)
        read_provenance(path)
        read_video(path)

    for data in whole:
        assert only_user_errors(tmp_path / "a.mp4", data, read) > 0


@pytest.mark.parametrize(("fps", "shown"), [(50, [0, 2, 4, 6, 8]), (25, list(range(10))), (12.5, [0, 0, 1, 1, 2, 2])])
def test_frames_at_another_rate(tmp_path, fps, shown):
    frames = np.repeat(np.arange(10, dtype=np.uint8) * 25, 32 * 48 * 3).reshape(10, 32, 48, 3)
    with VideoWriter(tmp_path / "video.mp4", 48, 32, fps=Fraction(fps), crf=1) as writer:
        writer.write_clip(frames)
        writer.finish()
    found = [round(float(frame.mean()) / 25) for frame in stream_frames(tmp_path / "video.mp4", fps=25)]
    assert found[: len(shown)] == shown
    assert len(found) == round(10 / fps * 25)
