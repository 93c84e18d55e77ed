"""The ways to condition that the paper compares (sections 3.2, 3.3 and 4.4; spec section 9). No torch in here.

The paper gives no equations for those it did not choose; what they are taken to mean is said at their classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SPEECH_CONDITIONINGS = ("cross", "joint", "norm")
"""Speech attention (published); tokens in the joint attention; an addition to the time embedding."""


@dataclass(frozen=True)
class Identity:
    """How the denoiser learns who the person is.

    face: what becomes of the face embedding: tokens to attend to, an addition to the time embedding, or nothing.
    reference: whether the joint attention sees the reference network's features.
    """

    face: Literal["attention", "norm"] | None
    reference: bool


IDENTITY_CONDITIONINGS = {
    "none": Identity(None, False),
    "face": Identity("attention", False),
    "face_norm": Identity("norm", False),
    "reference": Identity(None, True),
    "both": Identity("attention", True),
}
"""Nothing; face attention; face adaptive norm; the reference network; face attention and reference network (published).

Image latents, which show the portrait too, are in all of them.
"""

DEFAULT_SPEECH, DEFAULT_IDENTITY = "cross", "both"


def check_conditioning(speech: str, identity: str) -> None:
    """Raises ValueError for a name that is not one of the above."""
    for what, name, known in (
        ("speech_conditioning", speech, SPEECH_CONDITIONINGS),
        ("identity_conditioning", identity, IDENTITY_CONDITIONINGS),
    ):
        if name not in known:
            raise ValueError(f"{what} is {name!r}; there are {', '.join(known)}")


def sees_reference(config: Mapping[str, Any]) -> bool:
    """Whether a denoiser of this configuration (`transformer/config.json`) needs a reference network."""
    name = config.get("identity_conditioning", DEFAULT_IDENTITY)
    return name not in IDENTITY_CONDITIONINGS or IDENTITY_CONDITIONINGS[name].reference
