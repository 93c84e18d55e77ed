"""Files in, file out: the whole job on a tiny bundle, killed and resumed, through the command."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import tiny
from hallo3.animation import AnimationRequest, animate, file_digest, load
from hallo3.errors import UserError
from hallo3.media.credentials import read_credentials
from hallo3.media.provenance import read_provenance
from hallo3.media.video import probe, read_video
from hallo3.pipeline import Hallo3Pipeline
from waiting import held_while, killed_at, until


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.portrait().save(folder / "portrait.png")
    tiny.write_wav(folder / "speech.wav", tiny.speech(0.9))
    return {"portrait": folder / "portrait.png", "speech": folder / "speech.wav"}


def command(inputs: dict[str, Path], bundle: Path, output: Path, *options: str) -> list[str]:
    where = [str(inputs["portrait"]), str(inputs["speech"]), "--bundle", str(bundle), "-o", str(output)]
    look = ["--prompt", "a woman talks", "--face-box", "8", "8", "30", "30"]
    return [sys.executable, "-m", "hallo3", "animate", *where, *look, *options]


def streams(path: Path) -> list[tuple[int, bytes]]:
    """Every packet: what is the same in two files that differ by their signatures alone."""
    with av.open(str(path)) as container:
        return [(packet.stream_index, bytes(packet)) for packet in container.demux()]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300)


def test_result(inputs: dict[str, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    done = run(command(inputs, tiny_bundle, output, "--json", "--seed", "5"))
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("clip") == 4 and kinds[-1] == "done"
    steps = [event for event in events if event["event"] == "step"]
    assert len(steps) == 4 * 2 and all(event["seconds_left"] >= 0 for event in steps)
    info = probe(output)
    assert (info.codec, info.width, info.height, info.fps, info.frames) == ("h264", tiny.WIDTH, tiny.HEIGHT, 25, 23)
    assert info.sound is not None and info.sound.codec == "aac"
    assert info.start == 0 and abs(info.sound.start) < 1 / 25 and abs(info.seconds - 0.9) <= 1 / 25
    record = read_provenance(output)
    assert record is not None and record["ai_generated"] is True
    assert record["seed"] == 5 and record["settings"]["steps"] == 2
    assert record["inputs"]["speech"] == f"blake2b-128:{file_digest(inputs['speech'])}"
    signed = read_credentials(output)
    assert signed is not None and signed.state == "valid" and signed.local and signed.record == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4"]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(inputs: dict[str, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.mp4", tmp_path / "broken.mp4"
    assert run(command(inputs, tiny_bundle, whole, "--quiet", "--steps", "20")).returncode == 0
    words = command(inputs, tiny_bundle, broken, "--quiet", "--steps", "20")[1:]
    # The second clip is in the video, the state still tells of the first.
    killed = run(killed_at("os.rename", "*/broken.mp4.part.state", 2, *words))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "broken.mp4.part.state").exists() and not broken.exists()
    assert len(read_video(tmp_path / "broken.mp4.part").frames) >= 7  # what is there plays
    refused = run(command(inputs, tiny_bundle, broken, "--steps", "20"))
    assert refused.returncode == 2 and "--resume" in refused.stderr
    changed = run(command(inputs, tiny_bundle, broken, "--steps", "20", "--seed", "8", "--resume"))
    assert changed.returncode == 2 and "seed" in changed.stderr
    assert run(command(inputs, tiny_bundle, broken, "--quiet", "--steps", "20", "--resume")).returncode == 0
    assert np.array_equal(read_video(whole).frames, read_video(broken).frames)
    assert streams(whole) == streams(broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.mp4", "whole.mp4"]


def test_one_pipeline_makes_many_videos(inputs: dict[str, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    pipeline = Hallo3Pipeline.from_pretrained(tiny_bundle)
    made = []
    for name in ("a.mp4", "b.mp4"):
        request = AnimationRequest(**inputs, output=tmp_path / name, face_box=(8, 8, 30, 30), steps=1)
        made.append(animate(request, pipeline=pipeline))
    assert streams(made[0]) == streams(made[1])
    unsigned = []
    for name in ("c.mp4", "d.mp4"):
        request = dataclasses.replace(request, output=tmp_path / name, credentials=False)
        unsigned.append(animate(request, pipeline=pipeline).read_bytes())
    assert unsigned[0] == unsigned[1]


def test_existing_output_is_kept_unless_told(inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_text("precious")
    with pytest.raises(UserError, match="--overwrite"):
        animate(AnimationRequest(**inputs, output=tmp_path / "out.mp4"))


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_another_has_overtaken_replaces_nothing(
    inputs: dict[str, Path], tiny_bundle: Path, tmp_path: Path, resume: bool
) -> None:
    """Both looked for the result when there was none; the second gets to write when it is there."""
    pipeline = Hallo3Pipeline.from_pretrained(tiny_bundle)
    request = AnimationRequest(**inputs, output=tmp_path / "out.mp4", no_face=True, steps=1, watermark=False)
    made = []

    def overtake(event: dict[str, Any]) -> None:
        if event["event"] == "notice" and not made:
            made.append(animate(request, pipeline=pipeline).read_bytes())

    late = request
    if resume:
        with pytest.raises(KeyboardInterrupt):
            animate(request, pipeline=pipeline, listen=stop_after_a_clip)
        late, request = dataclasses.replace(request, resume=True), dataclasses.replace(request, overwrite=True)
    with pytest.raises(UserError, match="another run has made it meanwhile"):
        animate(late, pipeline=pipeline, listen=overtake)
    assert (tmp_path / "out.mp4").read_bytes() == made[0]
    assert os.listdir(tmp_path) == ["out.mp4"]


def stop_after_a_clip(event: dict[str, Any]) -> None:
    if event["event"] == "clip":
        raise KeyboardInterrupt


def test_interrupting_keeps_what_is_done(inputs: dict[str, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    """Ctrl-C after the first clip: the partial file and its state stay, and the message says how to go on."""
    output, state = tmp_path / "out.mp4", tmp_path / "out.mp4.part.state"
    process = subprocess.Popen(
        held_while(state, *command(inputs, tiny_bundle, output, "--quiet")[1:]),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )
    until(lambda: state.exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume" in errors and "Traceback" not in errors
    assert (tmp_path / "out.mp4.part").exists() and state.exists()


def test_module_and_version_answer(tmp_path: Path) -> None:
    import hallo3

    answer = run([sys.executable, "-m", "hallo3", "--version"])
    assert answer.stdout.strip() == f"hallo3 {hallo3.__version__}"
    assert "animate" in run([sys.executable, "-m", "hallo3", "--help"]).stdout


def test_vocals_are_separated_if_asked(inputs: dict[str, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    def make(name: str, **options: Any) -> bytes:
        request = AnimationRequest(**inputs, output=tmp_path / name, face_box=(8, 8, 30, 30), steps=1, **options)
        return animate(request, pipeline=pipeline).read_bytes()

    def frames(name: str) -> np.ndarray:
        return read_video(tmp_path / name).frames

    pipeline = Hallo3Pipeline.from_pretrained(tiny_bundle)
    make("plain.mp4")
    other = tiny.write_vocal_network(tmp_path / "other.onnx", gains=(1, 0, 1, 0))
    make("other.mp4", separate_vocals=True, vocal_separator=other)
    sound = [read_video(tmp_path / name).sound for name in ("plain.mp4", "other.mp4")]
    assert np.array_equal(*sound), "people hear the recording as it was"
    assert not np.array_equal(frames("plain.mp4"), frames("other.mp4"))
    mute = tiny.write_vocal_network(tmp_path / "mute.onnx", gains=(0,) * 4)
    with pytest.raises(UserError, match="silent"):
        make("mute.mp4", separate_vocals=True, vocal_separator=mute)
    with pytest.raises(UserError, match="--vocal-separator"):
        make("none.mp4", separate_vocals=True)


def test_the_bundles_own_separator_is_taken(inputs: dict[str, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    (bundle / "vocal_separator").mkdir()
    tiny.write_vocal_network(bundle / "vocal_separator" / "Kim_Vocal_2.onnx", gains=(0,) * 4)
    done = run(command(inputs, bundle, tmp_path / "out.mp4", "--separate-vocals"))
    assert done.returncode == 2 and "silent" in done.stderr and "Traceback" not in done.stderr


def test_a_stream_plays_while_it_grows(inputs: dict[str, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    """-o -: what has come after the first clip decodes; at the end it is the same picture and sound as a file's."""
    words, brake = command(inputs, tiny_bundle, Path("-"), "--json"), tmp_path / "brake"
    brake.touch()  # the third clip, of two steps as every one, waits until the first has been looked at
    held = held_while(brake, *words[1:], calls=4)
    process = subprocess.Popen(held, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout is not None and process.stderr is not None
    os.set_blocking(process.stdout.fileno(), False)
    said, early = [], tmp_path / "early.mp4"
    for line in process.stderr:
        said.append(line.decode())
        if '"clip"' in said[-1] and json.loads(said[-1])["event"] == "clip" and not early.exists():
            early.write_bytes(process.stdout.read())
            brake.unlink()
    os.set_blocking(process.stdout.fileno(), True)
    (tmp_path / "whole.mp4").write_bytes(early.read_bytes() + process.stdout.read())
    assert process.wait(120) == 0, said
    assert len(read_video(early).frames) in (7, 14), "the stream was held back"
    assert said[0].startswith("note: no content credentials, as a stream")
    assert all(json.loads(line)["event"] for line in said[1:])
    assert run(command(inputs, tiny_bundle, tmp_path / "file.mp4")).returncode == 0
    whole, file = read_video(tmp_path / "whole.mp4"), read_video(tmp_path / "file.mp4")
    identifiers = [(read_provenance(tmp_path / name) or {})["watermark"] for name in ("whole.mp4", "file.mp4")]
    assert all(identifiers) and whole.frames.shape == file.frames.shape
    assert whole.sound is not None and file.sound is not None
    shared = min(whole.sound.shape[1], file.sound.shape[1]) - 1024  # the file's last packet is cut to the picture
    assert np.array_equal(whole.sound[:, :shared], file.sound[:, :shared])
    record = read_provenance(tmp_path / "whole.mp4")
    assert record is not None and record["settings"]["credentials"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["early.mp4", "file.mp4", "whole.mp4"]


class Taker:
    """A stream that does something when it is given a clip."""

    def __init__(self, at_a_clip: Callable[[], object]) -> None:
        self.at_a_clip, self.taken = at_a_clip, b""

    def write(self, data: memoryview) -> int:
        if self.taken:  # what comes first is the header
            self.at_a_clip()
        self.taken += data
        return len(data)


def test_a_clip_is_encoded_while_the_next_is_sampled(inputs: dict[str, Path], tiny_bundle: Path) -> None:
    sampled, heard = threading.Event(), list[str]()

    def listen(event: dict[str, Any]) -> None:
        heard.append(event["event"])
        if event["event"] == "step" and event["clip"] == 1:
            sampled.set()

    stream = Taker(lambda: sampled.wait(180))
    request = AnimationRequest(**inputs, output=Path("-"), bundle=str(tiny_bundle), no_face=True)
    animate(request, listen=listen, stream=stream)
    assert sampled.is_set() and heard.count("clip") == 4 and heard[-2:] == ["clip", "done"]
    assert heard.index("clip") > heard.index("step") + 2, "the first clip waited for a step of the second"


def test_a_disk_that_fills_up_while_sampling_is_one_line(inputs: dict[str, Path], tiny_bundle: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    request = AnimationRequest(**inputs, output=Path("-"), bundle=str(tiny_bundle), no_face=True)
    with pytest.raises(UserError, match="no space left on device"):
        animate(request, stream=Taker(full))


@pytest.mark.slow
def test_a_stream_that_nobody_reads_ends(inputs: dict[str, Path], tiny_bundle: Path) -> None:
    """The reader leaves after the first bytes; a terminal and --resume are refused."""
    words = command(inputs, tiny_bundle, Path("-"), "--steps", "20", "--quiet")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(8)[4:] == b"ftyp"
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read() and process.wait(120) == 1
    refused = run([*words, "--resume"])
    assert refused.returncode == 2 and "--resume" in refused.stderr
    ours, theirs = os.openpty()
    shown = subprocess.run(words, stdout=theirs, stderr=subprocess.PIPE, timeout=300)
    os.close(ours)
    os.close(theirs)
    assert shown.returncode == 2 and b"terminal" in shown.stderr


def test_a_resumed_run_takes_as_many_branches_at_once(
    inputs: dict[str, Path], tiny_bundle: Path, tmp_path: Path
) -> None:
    """Where more or less memory is free than when it began, it still rounds as it did."""
    pipeline = load(str(tiny_bundle))
    assert pipeline.branches_at_once == 2
    made: dict[str, np.ndarray] = {}

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "clip":
            raise KeyboardInterrupt

    for name in ("whole", "broken"):
        request = AnimationRequest(**inputs, output=tmp_path / f"{name}.mp4", bundle=str(tiny_bundle), no_face=True)
        if name == "broken":
            with pytest.raises(KeyboardInterrupt):
                animate(request, pipeline=pipeline, listen=stop)
            pipeline.branches_at_once = 1
            request = dataclasses.replace(request, resume=True)
        made[name] = read_video(animate(request, pipeline=pipeline)).frames
    assert np.array_equal(made["whole"], made["broken"])


def test_presets_are_not_mixed_in_a_video(inputs: dict[str, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    """A half video goes on with the preset that it was begun with, to the same frames, and with no other."""
    pipeline = load(str(tiny_bundle))
    draft: dict[str, Any] = {**inputs, "bundle": str(tiny_bundle), "no_face": True, "steps": 5, "quality": "draft"}
    whole, half = (AnimationRequest(output=tmp_path / name, **draft) for name in ("whole.mp4", "half.mp4"))
    notices: list[str] = []

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "clip":
            raise KeyboardInterrupt

    animate(whole, pipeline=pipeline, listen=lambda event: notices.append(event.get("message", "")))
    assert any(notice.startswith("quality draft: 5 steps and") for notice in notices)
    with pytest.raises(KeyboardInterrupt):
        animate(half, pipeline=pipeline, listen=stop)
    for other in ("exact", "high"):
        with pytest.raises(UserError, match="quality"):
            animate(dataclasses.replace(half, quality=other, resume=True), pipeline=pipeline)
    animate(dataclasses.replace(half, resume=True), pipeline=pipeline)
    assert np.array_equal(read_video(whole.output).frames, read_video(half.output).frames)
    record = read_provenance(half.output)
    assert record is not None and record["settings"]["quality"] == "draft"
    assert record["settings"]["shortcuts"]["guidance_every"] == 2
