"""Clips of several sizes in one training: batches of one size, and nothing new where there is one size only."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from hallo3.sampling.scheduler import Hallo3DPMScheduler
from hallo3.training.data import open_samples
from hallo3.training.loop import LoopSettings, StepRandom
from hallo3.training.phases import Phase, phase_loss
from hallo3.training.prepare import Prepared, _draw, draw_batch, write_prepared

SIZES = [(48, 64), (64, 48), (48, 48), (48, 64), (64, 48)]  # the first is the tiny bundle's own


def write_sample(folder: Path, height: int, width: int, frames: int = 13) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(int(folder.name))
    np.save(folder / "frames.npy", random.integers(0, 255, (frames, height, width, 3), np.uint8))
    np.save(folder / "speech.npy", random.normal(0, 0.1, frames * 640).astype(np.float32))
    boxes = {name: np.tile([16.0, 16.0, 24.0, 20.0], (frames, 1)) for name in ("mouth_box", "face_box")}
    np.savez(folder / "truth.npz", opening=np.linspace(0, 1, frames), **boxes)
    (folder / "meta.json").write_text(json.dumps({"caption": "a woman talks"}))


@pytest.fixture(scope="module")
def components() -> dict[str, Any]:
    return tiny.components()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, components: dict[str, Any]) -> list[Prepared]:
    folder = tmp_path_factory.mktemp("buckets")
    for number, size in enumerate(SIZES):
        write_sample(folder / "data" / f"{number:06d}", *size)
    parts = components | {"face_encoder": components["face_encoder"].encoder}
    samples = open_samples(folder / "data")
    for sample in samples:
        write_prepared(sample, folder / "prepared", parts, 9, tiny.WORDS, 0)
    return [Prepared.open(sample, folder / "prepared") for sample in samples]


@pytest.fixture
def phase() -> Phase:
    return Phase(trains=("^denoiser",), speech=True, clip_frames=9, batch=3, loop=LoopSettings(steps=1))


def test_a_batch_is_of_one_size_and_every_size_comes(prepared: list[Prepared], phase: Phase) -> None:
    found = []
    for step in range(60):
        batch = draw_batch(prepared, phase, StepRandom.at(0, step))
        height, width = batch.pictures.shape[-2:]
        assert batch.pictures.shape == (3, 3, 3, height, width)
        assert batch.latents.shape == (3, 3, 16, height // 8, width // 8)
        assert batch.reference.shape == (3, 1, 16, height // 8, width // 8)
        assert batch.mouth.shape == (3, 3, height // 8, width // 8) and batch.mouth.sum() > 0
        found.append((height, width))
    # Each clip is as likely to be the first: two of the five are 48×64, and so many are batches.
    assert {size: found.count(size) / 60 for size in set(SIZES)} == pytest.approx(
        {(48, 64): 0.4, (64, 48): 0.4, (48, 48): 0.2}, abs=0.15
    )


def test_with_one_size_batches_are_what_they_were(prepared: list[Prepared], phase: Phase) -> None:
    """Every clip uniformly from all, number for number."""
    alike = [item for item in prepared if item.sample.size == (48, 64)]
    for step in range(5):
        random, plain = StepRandom.at(3, step), StepRandom.at(3, step)
        batch = draw_batch(alike, phase, random)
        items = [_draw(alike[int(plain.numpy.integers(len(alike)))], phase, plain) for _ in range(phase.batch)]
        for name in items[0]:
            assert torch.equal(getattr(batch, name), torch.stack([item[name] for item in items])), name
        assert random.numpy.bit_generator.state == plain.numpy.bit_generator.state
        assert torch.equal(random.torch.get_state(), plain.torch.get_state())


@pytest.mark.parametrize("first", range(3))
def test_every_size_trains(prepared: list[Prepared], phase: Phase, components: dict[str, Any], first: int) -> None:
    networks = torch.nn.ModuleDict(
        {"denoiser": components["transformer"], "reference_network": components["reference_network"]}
    )
    random = StepRandom.at(0, first)
    batch = draw_batch(prepared[first : first + 1], phase, random)
    loss, numbers = phase_loss(networks, components["vae"], Hallo3DPMScheduler(), batch, phase, random)
    loss.backward()
    assert torch.isfinite(loss) and numbers["mouth"] > 0
    networks.zero_grad(set_to_none=True)
