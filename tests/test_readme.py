"""What the README tells people to do works as it is written."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import hallo3
import tiny
from hallo3.cli import main
from hallo3.media.video import probe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sample as portrait.png, and a second of speech as speech.wav."""
    sample = Path(hallo3.__file__).parent / "embedded" / "sample"
    shutil.copy(sample / "portrait.png", tmp_path / "portrait.png")
    tiny.write_wav(tmp_path / "speech.wav", tiny.speech(0.5))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_python_example(folder: Path) -> None:
    (example,) = blocks("python")
    names: dict[str, object] = {}
    exec(example, names)
    frames = names["frames"]
    assert isinstance(frames, np.ndarray) and frames.shape == (13, 128, 192, 3)


@pytest.mark.slow
def test_animate_command(folder: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("hallo3 animate")]
    first = next(line for line in lines if "--bundle" not in line)
    words = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', first)]
    assert main([*words[1:], "--quiet"]) == 0
    assert probe(folder / "talk.mp4").frames == 13


def test_every_command_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    code = [*blocks("sh"), *re.findall(r"`([^`]*)`", prose)]
    named = set(re.findall(r"^hallo3 ([a-z]+)", "\n".join(code), flags=re.MULTILINE))
    assert {"animate", "convert", "verify", "download", "bundles", "studio", "train"} <= named
    for name in named:
        assert main([name, "--help"]) == 0
    capsys.readouterr()


def test_make_targets_and_linked_files_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+(?:-[a-z]+)*)\b", " ".join(blocks("sh")))) <= targets
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
