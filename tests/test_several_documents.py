"""What docs/several-gpus.md says is so: its commands run, on CPUs with a small bundle; its figures are the plan's."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hallo3
import tiny
from hallo3.bundles.sizes import bundle_sizes
from hallo3.cli.progress import clock
from hallo3.media.video import probe
from hallo3.runtime import plan
from hallo3.runtime.estimates import Sizes, estimates

PAGE = (Path(__file__).parents[1] / "docs" / "several-gpus.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the page's commands name."""
    sample = Path(hallo3.__file__).parent / "embedded" / "sample"
    shutil.copy(sample / "portrait.png", tmp_path / "portrait.jpg")
    tiny.write_wav(tmp_path / "speech.wav", tiny.speech(0.5))
    for name in ("first", "second"):
        (tmp_path / f"{name}.csv").write_text("portrait,speech\nportrait.jpg,speech.wav\n")
    return tmp_path


def run(command: str, folder: Path) -> None:
    """A command of the page, with the embedded bundle and on a CPU whatever it names."""
    assert command in COMMANDS
    here = re.sub(r"cuda:\d", "cpu", command.replace("--bundle hallo3", "--bundle embedded"))
    environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(here, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


def starting(words: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(words)]


def test_every_command_is_run_somewhere() -> None:
    """Here, or, in `test_plan.py` and `test_worker_processes.py`, with other words."""
    elsewhere = {"hallo3 plan hallo3 --gpu-memory 80GB --gpus 4"}
    elsewhere.add("hallo3 serve --device cuda:0 --device cuda:1 --bundle hallo3")
    here = {*starting("torchrun"), *starting("OMP_NUM_THREADS=2 torchrun"), *starting("hallo3 batch")}
    assert set(COMMANDS) == here | elsewhere and len(COMMANDS) == 6


@pytest.mark.slow
@pytest.mark.skipif(not (SCRIPTS / "torchrun").exists(), reason="torchrun is not beside this Python")
@pytest.mark.parametrize("command", [*starting("torchrun"), *starting("OMP_NUM_THREADS")])
def test_one_video(folder: Path, command: str) -> None:
    run(command, folder)
    assert probe(folder / "talk.mp4").frames == 13


@pytest.mark.slow
@pytest.mark.skipif(not (SCRIPTS / "hallo3").exists(), reason="hallo3 is not installed beside this Python")
def test_batches(folder: Path) -> None:
    for command in starting("hallo3 batch"):
        run(command, folder)
    for name in ("first", "second"):
        assert probe(folder / name / "portrait_speech.mp4").frames == 13


@pytest.mark.slow
def test_the_figures() -> None:
    """As the page prints them; a GPU that is here would be measured, so the plan is made as where there is none."""
    sizes, gpu = bundle_sizes("hallo3"), torch.device("cuda")
    work = plan.workload(sizes, 10.0, None, torch.bfloat16, gpu)
    speed = plan.speed_of(sizes, torch.device("cpu"), torch.bfloat16, elsewhere=True)
    rows = []
    for gpus in (1, 2, 4, 8):
        shared = replace(work, gpus=gpus)
        (staged,) = estimates(sizes, shared, speed, [("staged", "full", "whole")])
        assert staged.seconds is not None
        layout = Sizes(sizes, shared).layout
        how = f"{layout.branches} × {layout.parts}" if gpus > 1 else ""
        others = f"{staged.others / 1e9:.1f} GB" if gpus > 1 else ""
        rows.append([str(gpus), how, clock(staged.seconds), f"{staged.device / 1e9:.1f} GB", others])
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    assert table == rows
    assert f"{speed.per_second / 1e12:.0f} TFLOP/s, 10 s of speech, {work.steps} steps" in PAGE
