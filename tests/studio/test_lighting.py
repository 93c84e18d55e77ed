"""Light that is hard, and light that changes: what is seen of it, what the truth and the caption say."""

import numpy as np
import pytest

from hallo3.studio.captions import caption
from hallo3.studio.identity import Identity
from hallo3.studio.lighting import CHANGING
from hallo3.studio.performance import Performance, performance
from hallo3.studio.renderer import Rendered, render
from hallo3.studio.scene import LIGHTS, Scene

SECONDS = np.arange(0, 6, 0.25, dtype=np.float32)


def clip(lighting: str, seed: int = 4) -> tuple[Identity, Scene, Performance]:
    """A pale, bare person who holds still and looks at the camera for six seconds, before still surroundings."""
    rng = np.random.default_rng(seed)
    looks = {"hair": "bald", "hat": "none", "glasses": "none", "beard": "none", "skin_rgb": (0.9, 0.7, 0.6)}
    identity = Identity.from_dict({**Identity.sample(rng).to_dict(), **looks})
    scene = Scene.sample(rng, False, "backdrop", lighting)
    scene = Scene.from_dict({**scene.to_dict(), "prop": "none", "foreground": "none"})
    acted = performance(rng, np.zeros(len(SECONDS)), np.full(len(SECONDS), 0.5), "calm")
    still = {
        name: np.zeros_like(acted.yaw) for name in ("yaw", "pitch", "roll", "body_yaw", "blink", "camera_x", "camera_y")
    }
    return identity, scene, Performance(**{**vars(acted), **still, "time": SECONDS})


def brightness(drawn: Rendered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(F, H, W) means over the colours, and which pixels are always the person's, and never."""
    return drawn.frames.mean(axis=-1), drawn.subject_mask.all(axis=0), ~drawn.subject_mask.any(axis=0)


def halves(drawn: Rendered) -> np.ndarray:
    """Mean brightness of the left and the right half of the cheeks."""
    x, y, w, h = drawn.face_box[0].round().astype(int)
    cheeks = drawn.frames[0, y + h // 3 : y + 2 * h // 3, x + w // 10 : x + w - w // 10].mean(axis=-1)
    middle = cheeks.shape[1] // 2
    return np.array([cheeks[:, :middle].mean(), cheeks[:, -middle:].mean()])


def edge(drawn: Rendered) -> float:
    """The largest change from one pixel to the next along the forehead, in grey levels."""
    x, y, w, h = drawn.face_box[0].round().astype(int)
    row = drawn.frames[0, y + h // 8 : y + h // 6, x + w // 8 : x + w - w // 8].mean(axis=(0, 2))
    return float(np.abs(np.diff(row)).max())


@pytest.mark.parametrize("seed", range(4))
def test_harsh_light_splits_a_face_into_bright_and_dark(seed: int) -> None:
    drawn = {
        name: render(*(one if n != 2 else one[:1] for n, one in enumerate(clip(name, seed))), 128, 192)
        for name in ("steady", "harsh")
    }
    hard, soft = (halves(drawn[name]) for name in ("harsh", "steady"))
    _, scene, _ = clip("harsh", seed)
    lit = int(scene.light[0] > 0)
    assert hard[lit] > 1.7 * hard[1 - lit] and hard[lit] / hard[1 - lit] > 1.25 * soft[lit] / soft[1 - lit]
    assert edge(drawn["harsh"]) > max(20, 1.5 * edge(drawn["steady"])), "shadow ends in a line"


def test_what_is_not_light_stays_as_it_is() -> None:
    steady, *others = (clip(name) for name in LIGHTS)
    for identity, scene, _ in others:
        assert identity == steady[0]
        light = ("light", "key", "fill", "bounce", "lighting", "hardness")
        assert {k: v for k, v in scene.to_dict().items() if k not in light} == {
            k: v for k, v in steady[1].to_dict().items() if k not in light
        }


@pytest.mark.parametrize("lighting", sorted(CHANGING))
def test_changing_light_is_seen_on_the_face_and_around_and_known(lighting: str) -> None:
    drawn = render(*clip(lighting), 64, 96)
    bright, subject, around = brightness(drawn)
    for place in (subject, around):
        seen = bright[:, place]
        assert np.ptp(seen, axis=0).mean() > 12, "it changes"
    direction, luminance = drawn.light[:, :3], drawn.light[:, 3]
    np.testing.assert_allclose(np.linalg.norm(direction, axis=1), 1, atol=1e-3)
    if lighting == "fading":
        assert np.corrcoef(luminance, bright[:, subject].mean(axis=1))[0, 1] > 0.95
        assert np.corrcoef(luminance, bright[:, around].mean(axis=1))[0, 1] > 0.95
        return
    # The half of the face that the light comes from is the brighter one.
    left, right = subject & (np.arange(96) < 48), subject & (np.arange(96) >= 48)
    tilt = np.log(bright[:, right].mean(axis=1) / bright[:, left].mean(axis=1))
    assert np.corrcoef(direction[:, 0] * luminance, tilt)[0, 1] > 0.8


def test_steady_light_does_not_change() -> None:
    drawn = render(*clip("steady"), 64, 96)
    assert np.ptp(drawn.light, axis=0).max() == 0 and np.ptp(drawn.frames[:, :8].astype(int), axis=0).max() == 0


@pytest.mark.parametrize("lighting", sorted(CHANGING))
def test_light_does_not_jump(lighting: str) -> None:
    identity, scene, acted = clip(lighting)
    times = np.arange(len(SECONDS), dtype=np.float32) / 25 + 1.5
    frames = [
        render(identity, scene, Performance(**{**vars(acted), "time": times + start}), 32, 48).frames
        for start in (0, 0.96, 1.92)
    ]
    assert np.abs(np.diff(np.concatenate(frames).astype(float), axis=0)).mean(axis=(1, 2, 3)).max() < 12


def test_captions_say_how_light_falls() -> None:
    words = {"harsh": ("ard light", "arsh light"), "lamp": ("lamp",), "passing": ("ights pass", "assing lights")}
    words["fading"] = ("light fades", "ading light")
    for seed in range(12):
        lines = {}
        for lighting in LIGHTS:
            identity, scene, acted = clip(lighting, seed)
            lines[lighting] = caption(np.random.default_rng(seed), identity, scene, acted)
            assert lines[lighting].startswith(lines["steady"])
        for lighting, told in words.items():
            assert any(word in lines[lighting] for word in told)
            assert not any(word in lines["steady"] for word in told)
        side = "left" if clip("harsh", seed)[1].light[0] < 0 else "right"
        assert f"from the {side}" in lines["harsh"]


def test_an_unknown_light_is_refused() -> None:
    with pytest.raises(ValueError, match="steady, harsh"):
        Scene.sample(np.random.default_rng(0), lighting="disco")
