"""Ways to sample with less work, all approximate, and the presets that are made of them (`--quality`)."""

import math
from dataclasses import dataclass
from enum import Enum

from ..errors import UserError


@dataclass(frozen=True)
class Shortcuts:
    """What sampling leaves out; by default nothing.

    Attributes:
        steps: Share of the bundle's sampling steps that are taken.
        guided: From which share of the steps on, and until which, there is guidance (arXiv 2404.07724). In the others
            the branch with the most conditions is taken as it is.
        guidance_every: Of the guided steps every so many evaluates all branches. In between only the one with the most
            conditions is evaluated, and what guidance added to it last is added again.
        cache: If the denoiser's first layer changes what it is given by less than this share differently than in the
            step before, the other layers are not evaluated: they add what they added last (diffusers' first-block
            cache, for each branch by itself). 0 is none. The host waits for the device to know.
    """

    steps: float = 1.0
    guided: tuple[float, float] = (0.0, 1.0)
    guidance_every: int = 1
    cache: float = 0.0


EXACT = Shortcuts()


@dataclass(frozen=True)
class Quality:
    """A preset: what it leaves out, and what that means in words."""

    shortcuts: Shortcuts
    about: str


QUALITIES = {
    "exact": Quality(EXACT, "the bundle's steps, guidance in every one"),
    "high": Quality(
        Shortcuts(guided=(0.0, 0.8), guidance_every=2),
        "the bundle's steps; guidance in the first four fifths, computed in every second step",
    ),
    "draft": Quality(
        Shortcuts(steps=0.4, guided=(0.0, 0.6), guidance_every=2, cache=0.1),
        "two fifths of the steps; guidance in the first three fifths of them, computed in every second step; layers "
        "that would change little are skipped",
    ),
}


def find_quality(name: str) -> Quality:
    """A preset by its name. Raises UserError for one that there is not."""
    if name not in QUALITIES:
        *others, last = QUALITIES
        raise UserError(f"--quality {name}: must be {', '.join(others)} or {last}")
    return QUALITIES[name]


class Evaluated(Enum):
    """What of the guidance branches a step evaluates; those that are not: as without guidance, or as they were."""

    ALL = "all"
    LAST_ALONE = "last alone"
    LAST_WITH_KEPT = "last, with the guidance of before"


def evaluated_steps(steps: int, shortcuts: Shortcuts) -> list[Evaluated]:
    """What each step of a run evaluates. At least one step has guidance, so that one step alone is exact."""
    first = min(math.floor(shortcuts.guided[0] * steps), steps - 1)
    last = max(math.ceil(shortcuts.guided[1] * steps), first + 1)
    found = []
    for step in range(steps):
        if not first <= step < last:
            found.append(Evaluated.LAST_ALONE)
        elif (step - first) % shortcuts.guidance_every:
            found.append(Evaluated.LAST_WITH_KEPT)
        else:
            found.append(Evaluated.ALL)
    return found


def count_evaluations(steps: int, branches: int, shortcuts: Shortcuts) -> int:
    """Forwards of the denoiser in a clip, each of one branch; those that the cache cuts short count too."""
    return sum(branches if one is Evaluated.ALL else 1 for one in evaluated_steps(steps, shortcuts))


def steps_of(own: int, shortcuts: Shortcuts) -> int:
    """Steps that are taken in place of a bundle's own number."""
    return max(1, round(shortcuts.steps * own))


@dataclass(frozen=True)
class Sampling:
    """How a video is sampled: steps, and what is left out of them. own: the bundle's steps; quality: the preset."""

    quality: str
    steps: int
    own: int
    shortcuts: Shortcuts

    @classmethod
    def by(cls, quality: str, steps: int | None, own: int) -> "Sampling":
        """By a preset; steps that are asked for win over it. Raises UserError for a preset that there is not."""
        shortcuts = find_quality(quality).shortcuts
        return cls(quality, steps or steps_of(own, shortcuts), own, shortcuts)

    def evaluations(self, branches: int) -> int:
        """Forwards of the denoiser in a clip, each of one branch."""
        return count_evaluations(self.steps, branches, self.shortcuts)

    def is_exact(self, branches: int) -> bool:
        """Nothing is left out of the steps; of one step nothing can be."""
        return self.evaluations(branches) == self.steps * branches and not self.skips_layers

    @property
    def skips_layers(self) -> bool:
        """Layers may be left out of a step; of one step they can't be."""
        return self.shortcuts.cache > 0 and self.steps > 1

    def check_shared(self) -> None:
        """Raises UserError for what several processes that work on one clip can't do."""
        if self.skips_layers:
            raise UserError(f"--quality {self.quality}: skips layers, which several processes can't; use high or exact")

    def notice(self, branches: int) -> str:
        """What the user should know of the result, in a sentence; empty for the preset `exact`."""
        if self.quality == "exact":
            return ""
        if self.is_exact(branches) and self.steps >= self.own:
            step = "1 step" if self.steps == 1 else f"{self.steps} steps without guidance"
            return f"quality {self.quality}: of {step} nothing is left out; the result is the exact one"
        done = f"{self.steps} steps and {self.evaluations(branches)} evaluations of the denoiser a clip"
        return (
            f"quality {self.quality}: {done} in place of {self.own} and {self.own * branches}; the result is close to "
            "the exact one, not equal; see docs/speed.md"
        )
