"""What a step asks of the denoiser: branches as one batch give the same as one after the other."""

from pathlib import Path

import pytest
import torch

import tiny
from hallo3.pipeline import Hallo3Pipeline
from hallo3.sampling.guidance import GuidanceScales, branches

BOX = (8.0, 8.0, 30.0, 30.0)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Hallo3Pipeline:
    return Hallo3Pipeline.from_pretrained(tiny_bundle)


@pytest.mark.parametrize("scales", [GuidanceScales(), GuidanceScales(4.0, 3.0, 2.0), GuidanceScales(1.0, 1.0, 1.0)])
def test_branches_together_equal_branches_in_turn(pipeline: Hallo3Pipeline, scales: GuidanceScales) -> None:
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.5), "a woman talks", face_box=BOX, guidance=scales)
    batches: list[int] = []
    hook = pipeline.transformer.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    motion = [
        [clip.motion for clip in pipeline.render(performance, num_inference_steps=3, branches_at_once=at_once)]
        for at_once in (1, 2, 4)
    ]
    hook.remove()
    for alone, *beside in zip(*motion, strict=True):
        for one in beside:
            torch.testing.assert_close(one, alone, atol=2e-5, rtol=0)
    count = len(branches(scales))
    step = [[1] * count, [2] * (count // 2) or [1], [count]]
    assert batches == [size for sizes in step for size in sizes * 3 * performance.num_clips]


def test_conditions_that_are_not_prepared_are_taken_in_turn(pipeline: Hallo3Pipeline) -> None:
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.2), "a woman", face_box=BOX)
    exact = next(pipeline.render(performance, cached=False, branches_at_once=2)).motion
    torch.testing.assert_close(exact, next(pipeline.render(performance)).motion, atol=2e-5, rtol=0)
