"""Every mistake a user can make with `hallo3 animate`: one clear line, exit code 2, nothing overwritten."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import hallo3

BUNDLE = Path(hallo3.__file__).parent / "embedded"
RATE = 16000


def write_sound(path: Path, samples: np.ndarray, rate: int = RATE, codec: str = "pcm_f32le") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="flt", layout="mono")
        frame.rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return path


def write_silent_video(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def good(tmp_path: Path) -> dict[str, str]:
    """A portrait and a recording that nothing is wrong with."""
    portrait = tmp_path / "portrait.png"
    shutil.copy(BUNDLE / "sample" / "portrait.png", portrait)
    tone = 0.3 * np.sin(np.arange(RATE) * 0.1)
    return {"portrait": str(portrait), "speech": str(write_sound(tmp_path / "speech.wav", tone))}


def run(*arguments: str, cwd: Path, limits: dict[int, int] | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a process; limits: resource → bytes."""

    def restrict() -> None:
        for kind, size in (limits or {}).items():
            resource.setrlimit(kind, (size, size))

    return subprocess.run(
        [sys.executable, "-m", "hallo3", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=restrict,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("hallo3: error: ")
    for word in words:
        assert word in lines[0], lines[0]


def broken_images(folder: Path, good_portrait: str) -> dict[str, Path]:
    paths = {name: folder / f"{name}.png" for name in ("empty", "cut", "text", "dot")}
    paths["empty"].touch()
    paths["cut"].write_bytes(Path(good_portrait).read_bytes()[:2000])
    paths["text"].write_text("this is not an image\n" * 50)
    Image.new("RGB", (1, 1)).save(paths["dot"])
    return {**paths, "missing": folder / "nowhere.png", "folder": folder}


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "cut", "text", "dot"])
def test_bad_portrait(kind: str, good: dict[str, str], tmp_path: Path) -> None:
    path = broken_images(tmp_path, good["portrait"])[kind]
    refused(run("animate", str(path), good["speech"], "-o", "out.mp4", cwd=tmp_path), path.name)
    assert not (tmp_path / "out.mp4").exists()


def broken_sounds(folder: Path, good_speech: str) -> dict[str, Path]:
    paths = {name: folder / f"{name}.wav" for name in ("empty", "cut", "text", "silent", "short", "nan")}
    paths["empty"].touch()
    paths["cut"].write_bytes(Path(good_speech).read_bytes()[:30])
    paths["text"].write_text("this is not a recording\n" * 50)
    write_sound(paths["silent"], np.zeros(RATE))
    write_sound(paths["short"], 0.3 * np.sin(np.arange(RATE // 20) * 0.1))
    write_sound(paths["nan"], np.where(np.arange(RATE) % 100 == 0, np.nan, 0.1))
    paths["mute"] = write_silent_video(folder / "mute.mp4")
    return {**paths, "missing": folder / "nowhere.wav", "folder": folder}


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "cut", "text", "silent", "short", "nan", "mute"])
def test_bad_speech(kind: str, good: dict[str, str], tmp_path: Path) -> None:
    path = broken_sounds(tmp_path, good["speech"])[kind]
    refused(run("animate", good["portrait"], str(path), "-o", "out.mp4", cwd=tmp_path), path.name)
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--prompt", "word " * 2000], "prompt"),
        (["--steps", "-3"], "--steps"),
        (["--steps", "many"], "--steps"),
        (["--speech-scale", "nan"], "--speech-scale"),
        (["--speech-scale", "1e308"], "between -100 and 100"),
        (["--seed", "-1"], "--seed"),
        (["--crf", "99"], "--crf"),
        (["--crf", "0"], "--crf"),
        (["--framing", "round"], "--framing"),
        (["--dtype", "float12"], "--dtype"),
        (["--device", "abacus"], "--device"),
        (["--bundle", "no-such-bundle"], "no-such-bundle"),
        (["--face-box", "0", "0", "0", "0"], "--face-box"),
        (["--face-box", "9000", "0", "50", "50"], "--face-box"),
        (["--face", "7"], "--face"),
        (["--no-such-option"], "--no-such-option"),
        (["-o", "nowhere/out.mp4"], "nowhere"),
        (["-o", "out.avi"], ".mp4"),
        (["-o", "."], "folder"),
    ],
)
def test_bad_option(options: list[str], word: str, good: dict[str, str], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    refused(run("animate", good["portrait"], good["speech"], *options, cwd=tmp_path), word)
    assert sorted(tmp_path.iterdir()) == before


def test_missing_argument(good: dict[str, str], tmp_path: Path) -> None:
    refused(run("animate", good["portrait"], cwd=tmp_path), "SPEECH")


def test_output_is_not_overwritten(good: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_text("precious")
    refused(run("animate", good["portrait"], good["speech"], "-o", "out.mp4", cwd=tmp_path), "--overwrite")
    assert (tmp_path / "out.mp4").read_text() == "precious"


@pytest.mark.slow
def test_no_room_for_the_output(good: dict[str, str], tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk: the system's error comes at the same places."""
    arguments = ("animate", good["portrait"], good["speech"], "-o", "out.mp4", "--steps", "1", "--no-face", "--json")
    result = run(*arguments, cwd=tmp_path, limits={resource.RLIMIT_FSIZE: 3000})
    refused(result, "out.mp4", "make room")
    assert not (tmp_path / "out.mp4").exists()


def test_resume_without_anything_to_resume(good: dict[str, str], tmp_path: Path) -> None:
    refused(run("animate", good["portrait"], good["speech"], "-o", "out.mp4", "--resume", cwd=tmp_path), "--resume")


@pytest.mark.parametrize("damage", ["shard missing", "shard cut", "index broken", "part missing"])
def test_half_copied_bundle(damage: str, good: dict[str, str], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    shard = next((bundle / "transformer").glob("*.safetensors"))
    if damage == "shard missing":
        shard.unlink()
    elif damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:5000])
    elif damage == "index broken":
        (bundle / "model_index.json").write_text('{"_class_name": "Hallo3Pi')
    else:
        shutil.rmtree(bundle / "vae")
    arguments = ("animate", good["portrait"], good["speech"], "--bundle", str(bundle), "-o", "out.mp4")
    refused(run(*arguments, cwd=tmp_path), str(bundle) if damage != "part missing" else "vae")


def test_too_little_memory(good: dict[str, str], tmp_path: Path) -> None:
    arguments = ("animate", good["portrait"], good["speech"], "-o", "out.mp4")
    refused(run(*arguments, cwd=tmp_path, limits={resource.RLIMIT_AS: 1600 << 20}), "memory")
