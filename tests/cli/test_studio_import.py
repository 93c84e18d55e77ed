"""`hallo3 studio import`: videos and captions become a dataset, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hallo3.cli import main
from hallo3.media.sound import speech_from_samples
from hallo3.media.video import VideoWriter
from hallo3.studio.dataset import Material, open_dataset, sample


def write_videos(folder: Path, recordings: Path) -> None:
    """A person who talks for ten frames, the same without a caption, and a file that is no video."""
    (folder / "videos").mkdir(parents=True)
    (folder / "caption").mkdir()
    person = sample(0, split="train", frames=10, height=96, width=144, material=Material.find(recordings))
    speech = speech_from_samples(person.speech, 16_000)
    for name in ("person", "uncaptioned"):
        with VideoWriter(folder / "videos" / f"{name}.mp4", 144, 96, speech=speech) as writer:
            writer.write_clip(person.frames)
            writer.finish()
    (folder / "videos" / "broken.mp4").write_bytes(b"no video at all" * 50)
    for name in ("person", "broken"):
        (folder / "caption" / f"{name}.txt").write_text("A person talks.")


def test_videos_become_a_dataset(tmp_path: Path, recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "source", tmp_path / "clips"
    write_videos(folder, recordings)
    arguments = [str(folder), "--out", str(out), "--frames", "9", "--size", "64x96", "--size", "96x64"]
    command = [sys.executable, "-m", "hallo3", "studio", "import", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 1 clips of 1 videos, 2 skipped\n"
    lines = done.stderr.splitlines()
    assert [line for line in lines if "broken.mp4" in line and line.startswith("left out: ")]
    assert [line for line in lines if "uncaptioned.txt: no such file" in line and line.startswith("left out: ")]
    (clip,) = open_dataset(out)
    assert clip.frames.shape == (9, 64, 96, 3) and clip.source == "video" and clip.caption == "A person talks."
    assert clip.face.ndim == 1 and np.isfinite(clip.face).all() and clip.face.any()
    assert json.loads((out / "dataset.json").read_text())["sizes"] == ["64x96", "96x64"]
    written = (clip.folder / "frames.npy").stat().st_mtime_ns
    assert main(["studio", "import", *arguments]) == 0
    assert capsys.readouterr().out == done.stdout
    assert (clip.folder / "frames.npy").stat().st_mtime_ns == written


def test_nothing_came_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"no video at all")
    assert main(["studio", "import", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "no clip came of its 1 videos" in said and "a.txt: no such file" in said


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("nowhere", "--out", "out"), "no folder videos"),
        ((".", "--out", "out"), "no videos here"),
        ((".", "--out", "out", "--frames", "10"), "4k + 1"),
        ((".", "--out", "out", "--size", "100x100"), "multiples of 16"),
        ((".", "--out", "out", "--size", "wide"), "HEIGHTxWIDTH"),
        (("one", "--out", "out", "--bundle", "unheard-of"), "no such bundle"),
        ((".",), "--out"),
    ],
)
def test_refused(
    arguments: tuple[str, ...],
    word: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    (tmp_path / "one" / "videos").mkdir(parents=True)
    (tmp_path / "one" / "videos" / "a.mp4").write_bytes(b"no video at all")
    assert main(["studio", "import", *arguments]) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
