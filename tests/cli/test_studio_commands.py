"""`hallo3 studio` as a process: a video, a sheet, a dataset, and what it refuses."""

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hallo3.errors import UserError
from hallo3.media.provenance import read_provenance
from hallo3.media.sound import read_speech
from hallo3.media.video import probe, read_video
from hallo3.studio.dataset import Material, open_dataset, sample

SMALL = ("--height", "48", "--width", "64")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hallo3", "studio", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_drawn_person_as_a_video(tmp_path: Path, recordings: Path) -> None:
    video = tmp_path / "drawn.mp4"
    done = run("render", "-o", video, "--seed", 3, "--seconds", 0.6, "--recordings", recordings, *SMALL)
    assert done.returncode == 0, done.stderr
    truth = sample(3, split="test", frames=15, height=48, width=64, material=Material.find(recordings))
    assert truth.caption in done.stdout
    info = probe(video)
    assert (info.width, info.height, info.frames, info.sound is not None) == (64, 48, 15, True)
    error = np.abs(read_video(video).frames.astype(int) - truth.frames)
    assert error.mean() < 5
    record = read_provenance(video)
    assert record is not None and record["settings"]["caption"] == truth.caption
    again = run("render", "-o", video, "--seconds", 0.6, *SMALL)
    assert again.returncode == 2 and "--overwrite" in again.stderr


def test_a_drawn_person_may_pause(tmp_path: Path) -> None:
    """A clip that ends before its first word has a silent sound, which nobody could animate from."""
    (tmp_path / "speech").mkdir()
    with wave.open(str(tmp_path / "speech" / "pause.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        hum = np.sin(np.arange(32000) * 0.3) * 9000 * (np.arange(32000) > 24000)
        file.writeframes(hum.astype("<i2").tobytes())
    arguments = ("--seed", 4, "--split", "train", "--seconds", 0.3, "--recordings", tmp_path / "speech", *SMALL)
    done = run("render", "-o", tmp_path / "pause.mp4", *arguments)
    assert done.returncode == 0, done.stderr
    info = probe(tmp_path / "pause.mp4")
    assert info.sound is not None and info.frames == 8
    with pytest.raises(UserError, match="silent"):
        read_speech(tmp_path / "pause.mp4")


def test_a_contact_sheet(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = run("preview", "-o", sheet, "--rows", 2, "--columns", 1, *SMALL)
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (2 * 48, 4 * 64, 3) and pixels.std() > 10


def test_a_dataset_goes_on_where_it_stopped(tmp_path: Path, recordings: Path) -> None:
    folder = tmp_path / "data"
    first = run("dataset", "--out", folder, "--count", 1, "--frames", 5, "--recordings", recordings, *SMALL)
    assert first.returncode == 0, first.stderr
    written = (folder / "000000" / "frames.npy").stat().st_mtime_ns
    second = run("dataset", "--out", folder, "--count", 2, "--frames", 5, "--recordings", recordings, *SMALL)
    assert "2 clips, 1 of them new" in second.stdout and "2 of 2" in second.stderr
    assert (folder / "000000" / "frames.npy").stat().st_mtime_ns == written
    assert [clip.frames.shape for clip in open_dataset(folder)] == [(5, 48, 64, 3)] * 2
    assert json.loads((folder / "dataset.json").read_text())["frames"] == 5
    assert all(clip.face.ndim == 1 and clip.face.any() for clip in open_dataset(folder))
    other = run("dataset", "--out", folder, "--count", 2, "--frames", 9, *SMALL)
    assert (other.returncode == 2 and "other" in other.stderr) or "another folder" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("render", "-o", "out.avi"), ".mp4"),
        (("render", "-o", "out.mp4", "--split", "holdout"), "train or test"),
        (("render", "-o", "none/out.mp4"), "folder"),
        (("render", "-o", "out.mp4", "--seconds", "0"), "--seconds"),
        (("preview", "-o", "out.txt"), ".png"),
        (("preview", "-o", "out.png", "--style", "wild"), "calm"),
        (("dataset", "--out", "out", "--photographs", "."), "labelled portraits"),
        (("dataset", "--out", "out", "--recordings", "."), "no recordings"),
        (("dataset",), "--out"),
        (("dataset", "--out", "out", "--bundle", "unheard-of"), "no such bundle"),
        (("dataset", "--out", "taken"), "taken is a file"),
        (("dataset", "--out", "taken/below"), "taken is a file"),
        (("import", ".", "--out", "taken"), "taken is a file"),
        (("score", "--out", "taken"), "taken is a file"),
        (("preview", "-o", "out.png", "--light", "disco"), "fading"),
    ],
)
def test_refused(arguments: tuple[str, ...], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert word in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out.*"))


def test_a_base_install_is_told_what_it_lacks(tmp_path: Path) -> None:
    """Without the extra `train`, as if numba had never been installed."""
    code = "import sys; sys.modules['numba'] = None; from hallo3.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "studio", "preview", "-o", str(tmp_path / "out.png")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "pip install 'hallo3[train]'" in done.stderr and done.stderr.count("\n") == 1
