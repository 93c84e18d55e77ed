"""`hallo3 train`: a tiny bundle through both phases, killed and resumed, and every way to spend memory and time."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from hallo3.errors import UserError
from hallo3.pipeline import Hallo3Pipeline
from hallo3.studio.dataset import Material, write_dataset
from hallo3.training.checkpoints import Checkpoint, checkpoints
from hallo3.training.config import Training
from hallo3.training.loop import LoopSettings
from hallo3.training.run import train

CONFIG = """
trains: ['^denoiser\\.transformer_blocks\\.', '^reference_network\\.transformer_blocks\\.']
speech: true
clip_frames: 9
batch: 2
loop: {steps: 3, learning_rate: 1.0e-3, warmup: 0, save_every: 1, log_every: 1}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Path:
    """Three drawn clips."""
    folder = tmp_path_factory.mktemp("clips")
    size = {"frames": 13, "height": tiny.HEIGHT, "width": tiny.WIDTH}
    write_dataset(folder, 3, 0, split="train", material=Material.find(recordings), **size)
    return folder


@pytest.fixture
def training(data: Path, tiny_bundle: Path, tmp_path: Path) -> Training:
    loop = LoopSettings(steps=3, learning_rate=1e-3, warmup=0, save_every=1, log_every=1)
    return Training(
        start=str(tiny_bundle),
        data=data,
        out=tmp_path / "run",
        trains=(r"^denoiser\.transformer_blocks\.", r"^reference_network\.transformer_blocks\."),
        speech=True,
        clip_frames=9,
        batch=2,
        loop=loop,
    )


def changed(training: Training, **values: Any) -> Training:
    """The training with other settings, in a folder of its own that shares what was prepared."""
    loop = training.loop.model_copy(update=values.pop("loop", {}))
    name = "-".join(map(str, [*values.values(), *loop.model_dump().values()]))[-60:].replace(" ", "")
    out = training.out.with_name(f"run-{name}")
    out.mkdir()
    if (training.out / "prepared").exists():
        (out / "prepared").symlink_to(training.out / "prepared")
    return training.model_copy(update=values | {"loop": loop, "out": out})


def weights(training: Training) -> dict[str, torch.Tensor]:
    saved = Checkpoint(checkpoints(training.out)[-1])
    return {name: saved[f"parameters/{name}"] for name in saved.below("parameters")}


def losses(training: Training) -> list[float]:
    return [json.loads(line)["loss"] for line in (training.out / "metrics.jsonl").read_text().splitlines()]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_a_trained_bundle_is_a_bundle(training: Training, tiny_bundle: Path) -> None:
    said: list[str] = []
    bundle = train(training, said.append)
    pipeline, before = (Hallo3Pipeline.from_pretrained(place) for place in (bundle, tiny_bundle))
    new, old = pipeline.transformer.state_dict(), before.transformer.state_dict()
    moved = {name for name in new if not torch.equal(new[name], old[name])}
    assert moved and all(name.startswith("transformer_blocks.") for name in moved)
    assert pipeline.config.num_frames == 9
    frames = pipeline(tiny.portrait(), tiny.speech(0.4), face_box=(8, 8, 30, 30), num_inference_steps=1).frames
    assert frames.shape == (10, tiny.HEIGHT, tiny.WIDTH, 3)
    assert any("prepared 3 of 3" in line for line in said) and len(losses(training)) == 3


def test_batches_may_come_one_after_the_other(training: Training) -> None:
    """Two accumulated batches are the step of two processes: random numbers go by batch."""
    train(training, until=1)
    twice = changed(training, loop={"accumulate": 2, "steps": 2})
    train(twice, until=2)
    assert len(losses(twice)) == 2 and losses(twice)[0] != losses(training)[0]


def test_activation_checkpointing_gives_the_same_weights(training: Training) -> None:
    train(training, until=2)
    saving = changed(training, activation_checkpointing=True)
    train(saving, until=2)
    assert losses(saving) == pytest.approx(losses(training), rel=1e-6)
    assert largest_difference(weights(saving), weights(training)) < 1e-5


def test_bfloat16_is_near_float32_and_keeps_float32_weights(training: Training) -> None:
    train(training, until=2)
    brief = changed(training, precision="bfloat16")
    train(brief, until=2)
    assert losses(brief) != losses(training) and losses(brief) == pytest.approx(losses(training), rel=0.05)
    assert {value.dtype for value in weights(brief).values()} == {torch.float32}


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(training: Training, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint; the command goes on, and every loss and weight is the same, bit for bit."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    words = [f"start={training.start}", f"data={training.data}", "loop.steps=4"]
    command = [sys.executable, "-m", "hallo3", "train", str(tmp_path / "config.yaml"), *words]
    whole, broken = (training.model_copy(update={"out": tmp_path / name}) for name in ("whole", "broken"))
    done = subprocess.run([*command, f"out={whole.out}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(whole.out / "bundle")
    process = subprocess.Popen([*command, f"out={broken.out}"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not checkpoints(broken.out) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoints(broken.out) and not (broken.out / "bundle").exists(), "killed too late or never begun"
    again = subprocess.run([*command, f"out={broken.out}"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "goes on from" in again.stderr
    assert largest_difference(weights(whole), weights(broken)) == 0
    assert losses(broken)[-1] == losses(whole)[-1]


def test_what_does_not_fit_is_said_in_a_line(training: Training, tmp_path: Path) -> None:
    for values, words in (
        ({"data": tmp_path}, "no clips here"),
        ({"start": "nothing"}, "no such bundle"),
        ({"clip_frames": 17}, "too few for clip_frames 17"),
        ({"trains": ("nonsense",)}, "names no parameter"),
        ({"largest_travel": 1e-9, "out": training.out}, "allow more"),
    ):
        with pytest.raises(UserError, match=words):
            train(training.model_copy(update=values))


def test_what_was_prepared_for_other_clips_is_refused(training: Training) -> None:
    train(training, until=1)
    with pytest.raises(UserError, match=r"prepared\.json.*choose another folder"):
        train(training.model_copy(update={"clip_frames": 5}))


def test_the_command_explains_without_loading(training: Training, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    words = [f"start={training.start}", f"data={training.data}", f"out={training.out}"]
    command = [sys.executable, "-m", "hallo3", "train", str(tmp_path / "config.yaml"), *words]
    done = subprocess.run([*command, "--explain"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "denoiser.layers.attention" in done.stdout and "GFLOP" in done.stdout
    assert not training.out.exists()
    wrong = subprocess.run([*command, "loop.steps=0"], capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2 and "loop.steps" in wrong.stderr and wrong.stderr.count("\n") == 1
