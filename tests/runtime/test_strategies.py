"""Strategies give the frames of the resident pipeline, and hold no more than they say."""

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.hooks.group_offloading import (
    GroupOffloadingConfig,
    GroupOffloadingType,
    ModuleGroup,
    _apply_group_offloading,
)
from transformers.models.t5.modeling_t5 import T5Block

import tiny
from hallo3.animation import load
from hallo3.bundles.sizes import bundle_sizes
from hallo3.errors import UserError, in_one_line
from hallo3.networks.attention import JointAttention
from hallo3.networks.blocks import Hallo3Block, LastReferenceBlock, ReferenceBlock
from hallo3.pipeline import Hallo3Pipeline
from hallo3.runtime.estimates import Sizes
from hallo3.runtime.plan import workload
from hallo3.runtime.strategies import FREED, Staged, Streamed
from hallo3.sampling.guidance import GuidanceScales

LAYERS = {Hallo3Block, ReferenceBlock, LastReferenceBlock, T5Block}
TILED = 5.0
"""Mean difference of tiled decoding, of 255, as recorded: a VAE of random weights, whose norms see a quarter each."""
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


ELSEWHERE = torch.device("cpu:0")
"""The CPU under another name: what goes there is copied, as on the way to a GPU."""


def test_what_the_video_before_needed_is_not_read_again(tiny_bundle: Path, expected: np.ndarray) -> None:
    """Rows of a batch often share portrait or prompt, and a text encoder takes long to read."""
    pipeline, read = load(str(tiny_bundle), strategy="staged", device="cpu"), []
    plain = pipeline.strategy._read
    pipeline.strategy._read = lambda part: read.append(part) or plain(part)
    for _ in range(2):
        assert np.array_equal(frames_of(pipeline), expected)
    assert sorted(read) == ["reference_network", "text_encoder"]


def elsewhere(bundle: Path, strategy: type[Staged]) -> Hallo3Pipeline:
    """A pipeline whose networks wait on `cpu` and compute on `cpu:0`."""
    pipeline = load(str(bundle), device="cpu", strategy="staged")
    pipeline.strategy = strategy(ELSEWHERE, pipeline.strategy._read)
    return pipeline


def place(network: torch.nn.Module) -> int:
    """Where its numbers are; 0 where it has none."""
    return next(network.parameters()).data_ptr()


@contextmanager
def watched(look: Callable[[torch.nn.Module], None]) -> Iterator[None]:
    """Looks whenever a module of any network runs."""
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, _: look(module))
    try:
        yield
    finally:
        hook.remove()


def test_on_a_device_networks_make_room_for_each_other(tiny_bundle: Path, expected: np.ndarray) -> None:
    pipeline, seen = elsewhere(tiny_bundle, Staged), set()
    denoiser = pipeline.transformer
    staying = {"vae": pipeline.vae, "projection": denoiser.speech_projection}
    staying |= {"norm": denoiser.norm_out, "layer": denoiser.transformer_blocks[1]}
    home = {name: place(network) for name, network in staying.items()}

    def look(_: torch.nn.Module) -> None:
        present = {name for name, network in staying.items() if place(network) != home[name]}
        seen.add(frozenset(present | {name for name in FREED if not is_empty(getattr(pipeline, name))}))

    with watched(look):
        assert np.array_equal(frames_of(pipeline), expected)
    stages = ({"text_encoder"}, {"vae"}, {"reference_network"}, {"projection"}, {"norm", "layer"}, ())
    assert seen == {*map(frozenset, stages)}
    assert home == {name: place(network) for name, network in staying.items()}


def test_streamed_equals_resident_and_holds_one_layer(
    tiny_bundle: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = elsewhere(tiny_bundle, Streamed)
    present: list[torch.nn.Module] = []  # layers on the device
    layer_of: dict[torch.nn.Module, torch.nn.Module] = {}  # of every module inside one
    onload, offload = ModuleGroup.onload_, ModuleGroup.offload_
    used = set()

    def come(group: ModuleGroup) -> None:
        onload(group)
        present.extend(layer for layer in group.modules if type(layer) in LAYERS)

    def go(group: ModuleGroup) -> None:
        offload(group)
        for layer in group.modules:
            layer_of.update(dict.fromkeys(layer.modules(), layer) if type(layer) in LAYERS else {})
            if layer in present:
                present.remove(layer)

    def look(module: torch.nn.Module) -> None:
        layer = layer_of.get(module)
        assert len(present) <= 1
        if layer is not None and module is not layer:
            used.add((type(layer), type(module)))
            assert present == [layer]

    monkeypatch.setattr(ModuleGroup, "onload_", come)
    monkeypatch.setattr(ModuleGroup, "offload_", go)
    with watched(look):
        for _ in range(2):
            assert np.array_equal(frames_of(pipeline), expected)
    assert not present
    assert {layer for layer, _ in used} == LAYERS
    assert (Hallo3Block, JointAttention) in used


class Pinned:
    """Pinned memory as on a machine with a GPU: copies, of which each takes a power of two, and what they take now."""

    def __init__(self) -> None:
        self.bytes, self.most = 0, 0
        self._known: set[int] = set()

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        address, size = copy.data_ptr(), 2 ** math.ceil(math.log2(copy.nbytes))
        self.bytes += size
        self.most = max(self.most, self.bytes)
        self._known.add(address)
        weakref.finalize(copy.untyped_storage(), self._free, address, size)
        return copy

    def _free(self, address: int, size: int) -> None:
        self.bytes -= size
        self._known.discard(address)

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.data_ptr() in self._known


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> Pinned:
    """Lets layers be fetched ahead to a device that is no GPU, by the library's own code and an idle stream."""
    memory = Pinned()

    def apply(module: torch.nn.Module, use_stream: bool, **how: Any) -> None:
        how["offload_type"] = GroupOffloadingType(how["offload_type"])
        stream: Any = torch.cpu.Stream()
        _apply_group_offloading(
            module, GroupOffloadingConfig(**how, non_blocking=False, record_stream=False, stream=stream)
        )

    monkeypatch.setattr("hallo3.runtime.strategies.apply_group_offloading", apply)
    monkeypatch.setattr(Streamed, "_ahead", True)
    monkeypatch.setattr(torch.cpu.Stream, "synchronize", lambda stream: None, raising=False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: memory.pin(tensor))
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: memory.is_pinned(tensor))
    return memory


def test_what_stays_pinned_is_what_is_estimated(tiny_bundle: Path, expected: np.ndarray, pinned: Pinned) -> None:
    """The denoiser's layers from the first clip on; of text encoder and reference network one layer at a time."""
    pipeline, beside = elsewhere(tiny_bundle, Streamed), []
    sizes = bundle_sizes(tiny_bundle)
    work = workload(sizes, 0.7, None, torch.float32, torch.device("cuda"))

    def look(module: torch.nn.Module) -> None:
        if type(module) in LAYERS - {Hallo3Block}:
            beside.append(pinned.bytes)

    with watched(look):
        assert np.array_equal(frames_of(pipeline), expected)
        assert max(beside) == 0  # their copies are on the device by then
        assert pinned.bytes == pinned.most == Sizes(sizes, work).pinned()
        assert np.array_equal(frames_of(pipeline), expected)
    gc.collect()
    assert pinned.bytes == Sizes(sizes, work).pinned()


@pytest.mark.parametrize("strategy", [Staged, Streamed])
def test_exact_mode_by_every_strategy(tiny_bundle: Path, strategy: type[Staged]) -> None:
    """Conditions that are computed in every step, the speech projection's too."""

    def clips_of(pipeline: Hallo3Pipeline) -> list[np.ndarray]:
        performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.4), "a woman", no_face=True, guidance=SCALES)
        return [clip.frames for clip in pipeline.render(performance, cached=False)]

    plain = clips_of(load(str(tiny_bundle), device="cpu", strategy="resident"))
    for a, b in zip(clips_of(elsewhere(tiny_bundle, strategy)), plain, strict=True):
        assert np.array_equal(a, b)


def test_streamed_by_name(tiny_bundle: Path, expected: np.ndarray) -> None:
    """On a CPU layers wait where they compute; the hooks are the same."""
    pipeline = load(str(tiny_bundle), device="cpu", strategy="streamed")
    assert np.array_equal(frames_of(pipeline), expected)
    assert all(hasattr(layer, "_diffusers_hook") for layer in pipeline.transformer.transformer_blocks)


@pytest.mark.parametrize("strategy", [Staged, Streamed])
def test_what_came_to_the_device_goes_home_when_something_fails(tiny_bundle: Path, strategy: type[Staged]) -> None:
    pipeline = elsewhere(tiny_bundle, strategy)
    network = pipeline.transformer
    home = [parameter.data_ptr() for parameter in network.parameters()]
    with pytest.raises(RuntimeError, match="on the way"), pipeline.strategy.using(pipeline, "transformer"):
        moved = {name for name, parameter in network.named_parameters() if parameter.data_ptr() not in home}
        assert any(name.startswith("token_embedding") for name in moved)
        assert not any(name.startswith("speech_projection") for name in moved)
        raise RuntimeError("on the way")
    beside = [x for name, x in network.named_parameters() if not name.startswith("transformer_blocks")]
    assert {x.data_ptr() for x in beside} <= set(home)


@pytest.mark.parametrize("strategy", [Staged, Streamed])
def test_a_device_without_room_is_left_as_it_was(
    tiny_bundle: Path, strategy: type[Staged], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs out half-way there: nothing stays behind, and the error is one line."""
    pipeline = elsewhere(tiny_bundle, strategy)
    home = {name: parameter.data_ptr() for name, parameter in pipeline.transformer.named_parameters()}
    with pipeline.strategy.using(pipeline, "transformer"):
        pass  # layers have their hooks
    come, send = [], torch.Tensor.to

    def crowded(tensor: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        come.append(tensor)
        if len(come) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return send(tensor, *given, **named)

    monkeypatch.setattr(torch.Tensor, "to", crowded)
    with pytest.raises(torch.OutOfMemoryError) as error, pipeline.strategy.using(pipeline, "transformer"):
        pass
    monkeypatch.undo()
    assert in_one_line(error.value).startswith("memory ran out: ")
    found = {name: parameter.data_ptr() for name, parameter in pipeline.transformer.named_parameters()}
    assert {name for name in found if found[name] != home[name] and "transformer_blocks" not in name} == set()


def test_tiled_decoding(tiny_bundle: Path, expected: np.ndarray) -> None:
    """Frames of one clip differ a little; tiles are a quarter of the VAE's picture."""
    one, whole = {"no_face": True, "guidance": SCALES, "seed": 3}, expected[:7].astype(int)
    pipeline = load(str(tiny_bundle), device="cpu", strategy="staged", decoding="tiled")
    tiled = pipeline(tiny.portrait(), tiny.speech(0.28), "a woman talks", **one).frames
    assert frames_of(pipeline).shape == expected.shape  # of three clips
    pipeline.decoding = "whole"
    exact = pipeline(tiny.portrait(), tiny.speech(0.28), "a woman talks", **one).frames.astype(int)
    assert exact.shape == whole.shape == tiled.shape
    difference = np.abs(tiled - exact).mean()
    assert 0 < difference < TILED, difference


def test_tiles_of_another_vae_make_the_canvas(tiny_bundle: Path, expected: np.ndarray) -> None:
    """80 × 96 pixels are not the canvas, and their half is five latents by six."""
    pipeline = load(str(tiny_bundle), device="cpu", strategy="resident", decoding="tiled")
    pipeline.vae = AutoencoderKLCogVideoX.from_config(pipeline.vae.config, sample_height=80, sample_width=96).eval()
    assert frames_of(pipeline).shape == expected.shape


def test_what_a_strategy_cannot_do_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--strategy sideways: .* use auto, resident, staged, streamed"):
        load(str(tiny_bundle), strategy="sideways")
    monkeypatch.setattr("hallo3.runtime.plan.free_host_memory", lambda: 1000)
    monkeypatch.setattr("hallo3.runtime.plan.free_memory", lambda device: 1000)
    with pytest.raises(UserError, match=r"does not fit into 0\.0 GB of memory: resident needs .*; staged needs"):
        load(str(tiny_bundle), device="cpu")
