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
from hallo3.training.prepare import (
    MadeWith,
    Prepared,
    _draw,
    draw_batch,
    encoder_digests,
    open_prepared,
    write_prepared,
)

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
    made_with = MadeWith(9, tiny.WORDS, 0, encoder_digests(components))
    samples = open_samples(folder / "data")
    for sample in samples:
        write_prepared(sample, folder / "prepared", components, made_with)
    return open_prepared(samples, folder / "prepared")


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


def test_the_portrait_is_a_frame_of_the_same_video(components: dict[str, Any], tmp_path: Path, phase: Phase) -> None:
    """Of all the clips that were cut from it, not only the one that is learned from; and of no other video."""
    videos = {"000000": "a.mp4", "000001": "a.mp4", "000002": "b.mp4", "000003": None}
    for number, (name, video) in enumerate(videos.items()):
        write_sample(tmp_path / name, 48, 64)
        # A frame says which clip it is of, and where in it.
        frames = np.full((13, 48, 64, 3), 20 * number, np.uint8) + np.arange(13, dtype=np.uint8)[:, None, None, None]
        np.save(tmp_path / name / "frames.npy", frames)
        made_from = {} if video is None else {"made_from": {"video": video}}
        (tmp_path / name / "meta.json").write_text(json.dumps({"caption": "a woman talks"} | made_from))
    samples = open_samples(tmp_path)
    made_with = MadeWith(9, tiny.WORDS, 0, encoder_digests(components))
    for sample in samples:
        write_prepared(sample, tmp_path / "prepared", components, made_with)
    seen: dict[str, list[int]] = {name: [] for name in videos}
    for step in range(200):
        batch = draw_batch(open_prepared(samples, tmp_path / "prepared"), phase, StepRandom.at(0, step))
        for name, pictures in zip(batch.names, batch.pictures, strict=True):
            portrait, motion = (round((float(pictures[0, n, 0, 0]) + 1) * 127.5) for n in (0, 1))
            assert motion // 20 == int(name), "motion frames are the clip's own"
            seen[name].append(portrait)
    owners = {name: {portrait // 20 for portrait in portraits} for name, portraits in seen.items()}
    assert owners == {"000000": {0, 1}, "000001": {0, 1}, "000002": {2}, "000003": {3}}
    assert len({portrait % 20 for portrait in seen["000002"]}) == 8
    shares = [portrait // 20 == 0 for name in ("000000", "000001") for portrait in seen[name]]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1)


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
