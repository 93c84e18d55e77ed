"""`hallo3 train`: a tiny bundle through both phases, killed and resumed, and every way to spend memory and time."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import tiny
from hallo3.bundles.layout import save_components
from hallo3.errors import UserError
from hallo3.pipeline import Hallo3Pipeline
from hallo3.studio.dataset import Material, write_dataset
from hallo3.training.checkpoints import Checkpoint, checkpoints
from hallo3.training.config import Training, read_training
from hallo3.training.explain import explain
from hallo3.training.journal import read_metrics
from hallo3.training.loop import LoopSettings
from hallo3.training.parallel import alone, barrier, run_processes
from hallo3.training.prepare import ENCODERS
from hallo3.training.run import train
from waiting import killed_at

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


def test_the_seed_moves_the_batches(training: Training) -> None:
    """Prepared data as they are: the batches, their noise and what is dropped are what differs."""
    train(training, until=1)
    other = changed(training, loop={"seed": 1})
    train(other, until=1)
    named = training.model_copy(update={"seed": 1, "out": training.out.with_name("named")})
    named = named.model_copy(update={"loop": LoopSettings(**named.loop.model_dump(exclude={"seed"}))})
    train(named, until=1)
    assert losses(other) != losses(training) and losses(named) != losses(training)
    again = named.model_copy(update={"out": training.out.with_name("again"), "loop": other.loop})
    train(again, until=1)
    assert losses(again) == losses(named)


def test_an_out_that_is_no_folder_is_said(training: Training, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"file.*: can't be written to .*; give another folder"):
            train(training.model_copy(update={"out": out}))
    assert (tmp_path / "file").read_text() == "mine"


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
    words = ["-m", "hallo3", "train", str(tmp_path / "config.yaml")]
    words += [f"start={training.start}", f"data={training.data}", "loop.steps=4"]
    command = [sys.executable, *words]
    whole, broken = (training.model_copy(update={"out": tmp_path / name}) for name in ("whole", "broken"))
    done = subprocess.run([*command, f"out={whole.out}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(whole.out / "bundle")
    # The second checkpoint is written, but has not got its name.
    killed = killed_at("os.rename", "*/checkpoint-???????", 2, *words, f"out={broken.out}")
    assert subprocess.run(killed, stderr=subprocess.DEVNULL, timeout=300).returncode == -signal.SIGKILL
    assert len(checkpoints(broken.out)) == 1 and not (broken.out / "bundle").exists()
    again = subprocess.run([*command, f"out={broken.out}"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "goes on from" in again.stderr
    assert largest_difference(weights(whole), weights(broken)) == 0
    assert losses(broken) == losses(whole)


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


def test_what_was_prepared_with_or_of_something_else_is_refused(
    training: Training, recordings: Path, tmp_path: Path
) -> None:
    """The line names the file, what differs, and the remedy; removed, it is prepared anew."""
    train(training, until=1)
    size = {"frames": 13, "height": tiny.HEIGHT, "width": tiny.WIDTH}
    write_dataset(tmp_path / "others", 1, 7, split="train", material=Material.find(recordings), **size)
    starts = {part: tmp_path / f"other-{part}" for part in ENCODERS if part != "feature_extractor"}
    for part, folder in starts.items():
        components = tiny.components()
        if part == "tokenizer":
            components[part].add_tokens(["newly"])
        else:
            encoder = components[part].encoder if part in ("vae", "face_encoder") else components[part]
            next(encoder.parameters()).data += 0.01
        save_components(folder, components, tiny.config())
    trained: list[tuple[dict[str, Any], str]] = [
        ({"clip_frames": 5}, r"with clip_frames 9, not 5"),
        ({"seed": 4}, "with seed 0, not 4"),
        ({"data": tmp_path / "others"}, "of another clip"),
        *(({"start": str(folder)}, f"with another {part}") for part, folder in starts.items()),
    ]
    for values, words in trained:
        with pytest.raises(UserError, match=rf"00000\d\.npz: was prepared {words}; remove .*/prepared to prepare anew"):
            train(training.model_copy(update=values))
    shutil.rmtree(training.out / "prepared")
    train(training.model_copy(update={"data": tmp_path / "others"}), until=2)


def test_the_decoder_and_new_clips_leave_what_was_prepared(training: Training, data: Path, tmp_path: Path) -> None:
    """Latents are the encoder's; and a dataset may grow."""
    few = tmp_path / "few"
    shutil.copytree(data, few)
    shutil.rmtree(few / "000002")
    train(training.model_copy(update={"data": few}), until=1)
    components = tiny.components()
    next(components["vae"].decoder.parameters()).data += 0.1
    save_components(tmp_path / "decoder", components, tiny.config())
    said: list[str] = []
    train(training.model_copy(update={"start": str(tmp_path / "decoder")}), said.append, until=2)
    assert "prepared 1 of 1" in said


@pytest.mark.slow
def test_the_command_explains_without_loading(training: Training, tiny_bundle: Path, tmp_path: Path) -> None:
    """There is nothing to load: the bundle has no weights. Memory and time are those that are counted."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    for path in (tiny_bundle / "model_index.json", *tiny_bundle.glob("*/config.json")):
        place = tmp_path / "empty" / path.relative_to(tiny_bundle)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    words = [f"start={tmp_path / 'empty'}", f"data={training.data}", f"out={training.out}", "loop.accumulate=2"]
    command = [sys.executable, "-m", "hallo3", "train", str(tmp_path / "config.yaml"), *words]
    group = os.environ | {"WORLD_SIZE": "2", "COLUMNS": "120"}
    done, silent = (
        subprocess.run([*command, "--explain"], capture_output=True, text=True, timeout=300, env=group | {"RANK": rank})
        for rank in "01"
    )
    assert (done.returncode, silent.returncode, silent.stdout) == (0, 0, ""), done.stderr
    found = explain(read_training(tmp_path / "config.yaml", words), torch.device("cpu"), processes=2)
    shown = {
        " ".join(line.strip("│ ").split("│")[0].split()): line.strip("│ ").split("│")
        for line in done.stdout.splitlines()
    }
    assert "denoiser.layers.attention" in shown and "vae.encoder" in shown
    assert [cell.strip() for cell in shown["all"]] == ["all", f"{found.trained:,}", f"{found.frozen:,}"]
    sizes = {"weights": found.weights, "gradients, averages, optimiser": found.optimizer}
    for name, size in (sizes | {"kept for gradients": found.activations}).items():
        assert shown[name][1].strip() == f"{size / 1e6:,.1f} MB"
    assert shown["operations"][1].strip() == f"{found.operations / 1e9:,.1f} GFLOP"
    assert shown["processes"][1].strip() == "2" and shown["clips"][1].strip() == "4 of 9 frames, 48×64"
    assert shown["time, at least"][1].strip().endswith(" s") and "3 steps, at least" in shown
    assert not training.out.exists()
    wrong = subprocess.run([*command, "loop.steps=0"], capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2 and "loop.steps" in wrong.stderr and wrong.stderr.count("\n") == 1


def test_a_second_training_touches_nothing_of_the_first(training: Training) -> None:
    """Refused before it prepares, loads or cuts a curve; and what another prepares at this moment is left alone."""
    train(training, until=2)
    (training.out / "metrics.jsonl").open("a").write('{"step": 3, "loss": 1.0}\n')  # the first is on its way
    half = training.out / "prepared" / "000001.part"
    half.write_bytes(b"half of")
    (training.out / "prepared" / "000001.npz").unlink()

    def content() -> dict[Path, bytes]:
        files = (path for path in training.out.rglob("*") if path.is_file() and path.name != "training.lock")
        return {path: path.read_bytes() for path in files}

    before = content()
    with FileLock(training.out / "training.lock"), pytest.raises(UserError, match="another training writes there"):
        train(training)
    with FileLock(training.out / "prepared" / "training.lock"), pytest.raises(UserError, match="prepared: another"):
        train(training)
    assert content() == before
    train(training)
    assert [row["step"] for row in read_metrics(training.out / "metrics.jsonl")] == [1, 2, 3]
    assert not half.exists()


@pytest.mark.slow
def test_a_group_is_refused_as_one(tmp_path: Path) -> None:
    with FileLock(tmp_path / "training.lock"), pytest.raises(UserError, match="another training writes there"):
        run_processes(2, _hold, tmp_path)
    run_processes(2, _hold, tmp_path)


def _hold(folder: Path) -> None:
    with alone(folder), alone(folder):
        barrier()
