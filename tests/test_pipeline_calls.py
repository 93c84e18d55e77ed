"""What runs how often: every encoder once, speech once a clip, what is dropped once a bundle, nothing waited for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from hallo3.pipeline import Hallo3Pipeline
from hallo3.sampling.evaluation import BranchInputs
from hallo3.sampling.guidance import GuidanceScales
from hallo3.sampling.shortcuts import EXACT, QUALITIES, Shortcuts

STEPS = 2


@pytest.fixture
def pipeline(tiny_bundle: Path) -> Hallo3Pipeline:
    """Clips of 49 frames as published, of 16 × 16 pixels."""
    loaded = Hallo3Pipeline.from_pretrained(tiny_bundle, sample_height=16, sample_width=16, num_frames=49)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@contextmanager
def counted(pipeline: Hallo3Pipeline) -> Iterator[dict[str, int]]:
    """How often each network runs meanwhile, by hooks on the networks themselves."""
    networks = {
        "reference": pipeline.reference_network,
        "text": pipeline.text_encoder,
        "denoiser": pipeline.transformer,
        "speech projection": pipeline.transformer.speech_projection,
        "face projection": pipeline.transformer.face_projection,
        "speech encoder": pipeline.speech_encoder,
    }
    calls, hooks = dict.fromkeys(networks, 0), []
    for name, network in networks.items():

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        hooks.append(network.register_forward_hook(count))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def animate(pipeline: Hallo3Pipeline, seconds: float, **options: Any) -> dict[str, int]:
    with counted(pipeline) as calls:
        frames = pipeline(
            options.pop("portrait", None) or tiny.portrait(),
            tiny.speech(seconds),
            options.pop("prompt", "a woman talks"),
            no_face=True,
            framing="crop",
            num_inference_steps=STEPS,
            **options,
        ).frames
    assert len(frames) == seconds * 25
    return calls


def test_nothing_is_computed_twice(pipeline: Hallo3Pipeline) -> None:
    for videos, (seconds, clips) in enumerate([(2, 2), (5, 3), (10, 6)]):
        assert animate(pipeline, seconds) == {
            "reference": int(videos == 0),  # once per portrait; text: once per prompt; the videos have the same
            "text": int(videos == 0),
            "denoiser": clips * STEPS * 2,  # branches
            "speech projection": clips + (videos == 0),  # once per clip; the dropped speech once per bundle
            "face projection": 1,
            "speech encoder": 1,
        }


def test_only_branches_that_do_not_cancel_are_computed(pipeline: Hallo3Pipeline) -> None:
    one = animate(pipeline, 1, guidance=GuidanceScales(1.0, 1.0, 1.0))
    assert (one["denoiser"], one["reference"]) == (STEPS, 1)
    four = animate(pipeline, 1, guidance=GuidanceScales(4.0, 3.0, 2.0), seed=1)
    assert (four["denoiser"], four["reference"]) == (STEPS * 4, 2)
    again = animate(pipeline, 1, guidance=GuidanceScales(4.0, 3.0, 2.0), seed=2)
    assert (again["denoiser"], again["reference"]) == (STEPS * 4, 1)  # the dropped one is known


def test_what_the_video_before_had_in_common_is_not_encoded_again(pipeline: Hallo3Pipeline) -> None:
    def encoded(prompt: str, **options: Any) -> tuple[int, int]:
        calls = animate(pipeline, 1, prompt=prompt, **options)
        return calls["text"], calls["reference"]

    assert [encoded("a woman talks") for _ in range(2)] == [(1, 1), (0, 0)]
    assert [encoded("a man talks") for _ in range(2)] == [(1, 0), (0, 0)]
    assert [encoded("a man talks", seed=5) for _ in range(2)] == [(0, 1), (0, 0)]
    other = tiny.portrait().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert [encoded("a man talks", seed=5, portrait=other) for _ in range(2)] == [(0, 1), (0, 0)]
    with torch.no_grad():
        pipeline.text_encoder.shared.weight.mul_(0.5)
    assert encoded("a man talks", seed=5, portrait=other) == (1, 0)


def test_what_is_kept_follows_the_weights(pipeline: Hallo3Pipeline) -> None:
    guided = {"guidance": GuidanceScales(4.0, 3.0, 2.0)}
    assert animate(pipeline, 1, **guided)["speech projection"] == 2
    assert animate(pipeline, 1, **guided)["speech projection"] == 1
    with torch.no_grad():
        pipeline.transformer.transformer_blocks[0].speech_attention.to_kv.weight.mul_(0.5)
    assert animate(pipeline, 1, **guided)["speech projection"] == 2
    with torch.no_grad():
        pipeline.reference_network.transformer_blocks[0].attention.to_qkv.weight.mul_(0.5)
    assert animate(pipeline, 1, **guided)["reference"] == 2
    pipeline.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_kv"]))
    for _ in range(2):  # an adapter can be switched off without a trace in the weights
        assert animate(pipeline, 1, **guided)["speech projection"] == 2


class Crossings(TorchDispatchMode):
    """Counts copies from the host to the device. The meta device has no numbers: reading one back is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu" and result.device.type == "meta":
            self.found += 1
        return result


@torch.no_grad()
@pytest.mark.parametrize(("shortcuts", "at_once"), [(EXACT, 1), (EXACT, 2), (QUALITIES["high"].shortcuts, 1)])
def test_a_step_waits_for_nothing(pipeline: Hallo3Pipeline, shortcuts: Shortcuts, at_once: int) -> None:
    """The solver's loop on a device whose numbers can't be read: no `.item()`, no `bool`, no copy to the host."""
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(1), "a woman", no_face=True, framing="crop")
    image_latents = pipeline._image_latents(performance, None, torch.Generator().manual_seed(0))
    windows, lasting = pipeline._clip_windows(performance, 0), pipeline._lasting_conditions(performance)
    inputs = pipeline._clip_inputs(performance, windows, pipeline._project_speech(windows), image_latents, lasting)
    pipeline.to("meta")
    inputs = [
        BranchInputs(
            one.weights,
            one.image_latents.to("meta"),
            one.text_embeds.to("meta"),
            {"conditions": one.given["conditions"].to("meta")},
        )
        for one in inputs
    ]
    crossings = []
    for steps in (3, 5):
        with Crossings() as counter:
            generator = torch.Generator().manual_seed(0)
            sample = pipeline._sample(inputs, image_latents, steps, generator, None, shortcuts, at_once)
        assert sample.device.type == "meta"
        crossings.append(counter.found)
    assert crossings[1] - crossings[0] == 2  # the step's noise, which is drawn on the host, and nothing else
