"""Strategies give the frames of the resident pipeline, and hold no more than they say."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from hallo3.animation import load
from hallo3.errors import UserError
from hallo3.pipeline import Hallo3Pipeline
from hallo3.runtime.strategies import FREED, Staged
from hallo3.sampling.guidance import GuidanceScales

SCALES = GuidanceScales(4.0, 3.0, 2.0)


def frames_of(pipeline: Hallo3Pipeline) -> np.ndarray:
    options = {"no_face": True, "guidance": SCALES, "seed": 3, "watermark": False}
    return pipeline(tiny.portrait(), tiny.speech(0.7), "a woman talks", **options).frames


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path) -> np.ndarray:
    return frames_of(load(str(tiny_bundle), device="cpu", strategy="resident"))


def is_empty(network: torch.nn.Module) -> bool:
    return next(network.parameters()).device.type == "meta"


def test_staged_equals_resident_and_frees_what_it_has_used(tiny_bundle: Path, expected: np.ndarray) -> None:
    pipeline = load(str(tiny_bundle), device="cpu", strategy="staged")
    assert all(is_empty(getattr(pipeline, name)) for name in FREED)
    present: list[tuple[bool, ...]] = []

    def look(*_: object) -> None:
        present.append(tuple(not is_empty(getattr(pipeline, name)) for name in FREED))

    hooks = [torch.nn.modules.module.register_module_forward_pre_hook(look)]
    try:
        for _ in range(2):  # parts come back for the next video
            assert np.array_equal(frames_of(pipeline), expected)
    finally:
        for hook in hooks:
            hook.remove()
    assert set(present) == {(True, False), (False, True), (False, False)}  # one after the other, then neither
    assert all(is_empty(getattr(pipeline, name)) for name in FREED)


def test_the_way_to_a_device_and_back_changes_nothing(tiny_bundle: Path, expected: np.ndarray) -> None:
    """`cpu:0` is the CPU under another name: the denoiser comes and goes as on a GPU."""
    pipeline = load(str(tiny_bundle), device="cpu", strategy="resident")
    device = torch.device("cpu:0")
    read = {name: getattr(pipeline, name) for name in FREED}
    pipeline.strategy = Staged(device, read.__getitem__)
    released: list[int] = []
    plain = pipeline.strategy.release
    pipeline.strategy.release = lambda module: (released.append(len(list(module.parameters()))), plain(module))
    assert np.array_equal(frames_of(pipeline), expected)
    whole = len(list(pipeline.transformer.parameters()))
    projection = len(list(pipeline.transformer.speech_projection.parameters()))
    assert released == [whole] + [projection, whole] * 3  # conditions that last, then three clips


def test_a_network_comes_to_the_device_and_is_whole_afterwards(tiny_bundle: Path) -> None:
    """On the way to `cpu:0` numbers are copied, as to a GPU."""

    def places(network: torch.nn.Module) -> list[int]:
        return [parameter.data_ptr() for parameter in network.parameters()]

    pipeline = load(str(tiny_bundle), device="cpu", strategy="resident")
    network, projection = pipeline.transformer, pipeline.transformer.speech_projection
    home, projection_home = places(network), places(projection)
    strategy = Staged(torch.device("cpu:0"), lambda part: getattr(pipeline, part))
    with pytest.raises(RuntimeError, match="on the way"), strategy.using(pipeline, "transformer"):
        assert not set(places(network)) & set(home)
        strategy.release(projection)
        assert places(projection) == projection_home
        assert len(set(places(network)) & set(home)) == len(projection_home)
        raise RuntimeError("on the way")
    assert places(network) == home


def test_what_a_strategy_cannot_do_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--strategy sideways: .* use auto, resident, staged"):
        load(str(tiny_bundle), strategy="sideways")
    monkeypatch.setattr("hallo3.runtime.plan.free_host_memory", lambda: 1000)
    monkeypatch.setattr("hallo3.runtime.plan.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"does not fit into 0\.0 GB of memory: resident needs .*; staged needs"):
        load(str(tiny_bundle), device="cpu")
