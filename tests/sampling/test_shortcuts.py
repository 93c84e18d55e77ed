"""Presets: what they say is what is evaluated, one step is exact, and what they cost does not grow."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from hallo3.errors import UserError
from hallo3.pipeline import Hallo3Pipeline
from hallo3.sampling.guidance import GuidanceScales, branches
from hallo3.sampling.shortcuts import (
    EXACT,
    QUALITIES,
    Evaluated,
    Shortcuts,
    count_evaluations,
    evaluated_steps,
    find_quality,
    steps_of,
)

ALL, ALONE, KEPT = Evaluated.ALL, Evaluated.LAST_ALONE, Evaluated.LAST_WITH_KEPT
STEPS = 12
FOUR = GuidanceScales(4.0, 3.0, 2.0)


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> Hallo3Pipeline:
    return Hallo3Pipeline.from_pretrained(tiny_bundle)


def run(
    pipeline: Hallo3Pipeline, scales: GuidanceScales, shortcuts: Shortcuts, steps: int, at_once: int = 1
) -> tuple[torch.Tensor, int]:
    """The first clip's latents, and the branches that the denoiser has evaluated for them."""
    performance = pipeline.prepare(tiny.portrait(), tiny.speech(0.2), "a woman", no_face=True, guidance=scales)
    generator = torch.Generator().manual_seed(0)
    image_latents = pipeline._image_latents(performance, None, generator)
    windows, lasting = pipeline._clip_windows(performance, 0), pipeline._lasting_conditions(performance)
    inputs = pipeline._clip_inputs(performance, windows, pipeline._project_speech(windows), image_latents, lasting)
    evaluated: list[int] = []
    hook = pipeline.transformer.register_forward_hook(lambda _, given, __: evaluated.append(len(given[0])))
    with torch.no_grad():
        latents = pipeline._sample(inputs, image_latents, steps, generator, None, shortcuts, at_once)
    hook.remove()
    return latents, sum(evaluated)


def test_what_a_step_evaluates() -> None:
    assert evaluated_steps(4, EXACT) == [ALL] * 4
    assert evaluated_steps(10, Shortcuts(guided=(0.2, 0.5))) == [ALONE] * 2 + [ALL] * 3 + [ALONE] * 5
    assert evaluated_steps(6, Shortcuts(guidance_every=3)) == [ALL, KEPT, KEPT] * 2
    both = Shortcuts(guided=(0.25, 1.0), guidance_every=2)
    assert evaluated_steps(8, both) == [ALONE] * 2 + [ALL, KEPT] * 3
    for one in QUALITIES.values():
        assert evaluated_steps(1, one.shortcuts) == [ALL]
        for steps in range(1, 60):
            found = evaluated_steps(steps, one.shortcuts)
            assert len(found) == steps and ALL in found
            assert KEPT not in found or found.index(ALL) < found.index(KEPT), "nothing was kept yet"


@pytest.mark.parametrize("name", QUALITIES)
@pytest.mark.parametrize("scales", [GuidanceScales(), FOUR, GuidanceScales(1.0, 1.0, 1.0)])
@pytest.mark.parametrize("at_once", [1, 4])
def test_as_many_evaluations_as_the_preset_says(
    pipeline: Hallo3Pipeline, name: str, scales: GuidanceScales, at_once: int
) -> None:
    shortcuts, count = QUALITIES[name].shortcuts, len(branches(scales))
    steps = steps_of(STEPS, shortcuts)
    _, evaluated = run(pipeline, scales, shortcuts, steps, at_once)
    assert evaluated == count_evaluations(steps, count, shortcuts)
    if name == "exact":
        assert evaluated == STEPS * count
    elif count > 1:
        assert evaluated <= {"high": 0.8, "draft": 0.4}[name] * STEPS * count


@pytest.mark.parametrize("name", QUALITIES)
def test_one_step_is_exact(pipeline: Hallo3Pipeline, name: str) -> None:
    expected, _ = run(pipeline, FOUR, EXACT, 1)
    assert torch.equal(run(pipeline, FOUR, QUALITIES[name].shortcuts, 1)[0], expected)


@pytest.mark.parametrize("name", ["high", "draft"])
def test_without_guidance_nothing_of_it_is_left_out(pipeline: Hallo3Pipeline, name: str) -> None:
    shortcuts = Shortcuts(guided=QUALITIES[name].shortcuts.guided, guidance_every=2)
    none = GuidanceScales(1.0, 1.0, 1.0)
    assert torch.equal(run(pipeline, none, shortcuts, 4)[0], run(pipeline, none, EXACT, 4)[0])


def test_kept_guidance_is_the_last_one(pipeline: Hallo3Pipeline) -> None:
    """Where guidance adds the same in every step, keeping it changes nothing: scales that are nearly 1."""
    near = GuidanceScales(1.0 + 1e-4, 1.0 + 1e-4, 1.0)
    exact, _ = run(pipeline, near, EXACT, 6)
    kept, _ = run(pipeline, near, Shortcuts(guidance_every=3), 6)
    torch.testing.assert_close(kept, exact, atol=1e-3, rtol=0)


# Relative difference of the latents from exact ones, in float32, of a tiny random network; recorded, and may not grow.
# Fewer steps draw other noise: that is most of what they change.
RECORDED: dict[str, tuple[Shortcuts, float]] = {
    "guidance interval": (Shortcuts(guided=(0.0, 0.8)), 0.0116),
    "guidance kept": (Shortcuts(guidance_every=2), 0.00123),
    "cache": (Shortcuts(cache=0.1), 0.00053),
    "high": (QUALITIES["high"].shortcuts, 0.0121),
    "fewer steps": (Shortcuts(steps=0.4), 1.033),
    "draft, but for its steps": (replace(QUALITIES["draft"].shortcuts, steps=1.0), 0.0191),
    "draft": (QUALITIES["draft"].shortcuts, 1.033),
}


@pytest.mark.parametrize("name", RECORDED)
def test_the_difference_from_exact_does_not_grow(pipeline: Hallo3Pipeline, name: str) -> None:
    shortcuts, recorded = RECORDED[name]
    exact, _ = run(pipeline, FOUR, EXACT, STEPS)
    found, _ = run(pipeline, FOUR, shortcuts, steps_of(STEPS, shortcuts))
    difference = float((found - exact).norm() / exact.norm())
    assert 0 < difference <= recorded * 1.02, f"{difference:.4f}"


def test_a_cache_is_gone_after_the_run(pipeline: Hallo3Pipeline) -> None:
    before, _ = run(pipeline, FOUR, EXACT, 4)
    layers: list[Any] = []
    hook = pipeline.transformer.transformer_blocks[-1].attention.register_forward_hook(lambda *_: layers.append(1))
    run(pipeline, FOUR, Shortcuts(cache=0.9), 4)
    hook.remove()
    assert len(layers) < 4 * 4 and not pipeline.transformer.is_cache_enabled
    assert torch.equal(run(pipeline, FOUR, EXACT, 4)[0], before)


def test_names() -> None:
    assert find_quality("draft") is QUALITIES["draft"] and find_quality("exact").shortcuts == EXACT
    with pytest.raises(UserError, match="--quality best: must be exact, high or draft"):
        find_quality("best")


def test_frames_by_a_preset(pipeline: Hallo3Pipeline) -> None:
    def frames(**options: Any) -> np.ndarray:
        given = (tiny.portrait(), tiny.speech(0.2), "a woman")
        return pipeline(*given, no_face=True, watermark=False, num_inference_steps=6, **options).frames

    exact = frames()
    assert np.array_equal(frames(quality="exact"), exact)
    assert not np.array_equal(frames(quality="high"), exact)
