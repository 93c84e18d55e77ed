"""What a job may ask for beside its portrait and its speech: on the command line, in a row of a file or in a form."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from .errors import UserError

if TYPE_CHECKING:
    from .animation import AnimationRequest

STEPS, CRF, SCALE, SEED, PROMPT = 1000, 51, 100.0, (1 << 63) - 1, 4000
Scale = Annotated[FiniteFloat | None, Field(ge=-SCALE, le=SCALE)]

_SCALE = f"must be a number between {-SCALE:g} and {SCALE:g}; 1 is no guidance, 3.5 is published"
EXPECTED = {
    "prompt": f"must be text of at most {PROMPT} characters; shorten it",
    "seed": f"must be between 0 and {SEED}",
    "quality": "must be exact, high or draft",
    "steps": f"must be between 1 and {STEPS}; 20 to 50 are usual",
    "speech_scale": _SCALE,
    "text_scale": _SCALE,
    "reference_scale": _SCALE,
    "framing": "must be auto, pad or crop",
    "crf": f"must be between 1 (nearly lossless) and {CRF}; 18 is the default",
    "face": "must be the number of a face, largest first, from 0",
    "face_box": "needs X Y W H, four numbers in pixels of the portrait",
    "no_face": "must be true or false",
}
"""Setting → what may stand there, and what to do."""
ALONE = "--no-face goes without --face-box and --face: it animates without an identity"


def _four_numbers(value: Any) -> Any:
    """`8 8 30 30` or `8,8,30,30`, as one cell of a table and one field of a form hold it."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


class Settings(BaseModel):
    """Settings of one video; the same words and ranges on the command line, in a batch, on the page and on the server.

    Attributes:
        prompt: Who is seen, what they do, and where.
        seed: Same seed, same machine: same frames.
        quality: exact, high or draft: how much may be left out to be faster.
        steps: Sampling steps; more is finer and slower. The bundle's own if left out, or the quality's share of them.
        speech_scale: Guidance by speech; 1 is none. The bundle's own if left out.
        text_scale: Guidance by the prompt.
        reference_scale: Guidance by the portrait.
        framing: How the picture meets the model's format: auto, pad or crop.
        crf: H.264 quality, 1 (nearly lossless) to 51.
        face: Which of several faces, largest first, from 0.
        face_box: Where the face is: x, y, width and height in pixels of the portrait.
        no_face: Animate without knowing who it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str = Field(default="", max_length=PROMPT)
    seed: int = Field(default=0, ge=0, le=SEED)
    quality: Literal["exact", "high", "draft"] = "exact"
    steps: int | None = Field(default=None, ge=1, le=STEPS)
    speech_scale: Scale = None
    text_scale: Scale = None
    reference_scale: Scale = None
    framing: Literal["auto", "pad", "crop"] = "auto"
    crf: int = Field(default=18, ge=1, le=CRF)
    face: int | None = Field(default=None, ge=0)
    face_box: Annotated[
        tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] | None, BeforeValidator(_four_numbers)
    ] = None
    no_face: bool = False

    @model_validator(mode="after")
    def _without_a_face(self) -> Self:
        if self.no_face and (self.face_box or self.face is not None):
            raise ValueError(ALONE)
        return self

    def request(self, portrait: Path, speech: Path, output: Path, **common: Any) -> "AnimationRequest":
        """The whole request. common: what the settings don't hold: bundle, marks, certificate."""
        from .animation import AnimationRequest

        values = self.model_dump()
        return AnimationRequest(portrait, speech, output, face_index=values.pop("face"), **values, **common)


def read_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from names and values; numbers may be text, as in a table. Raises UserError naming the first mistake."""
    unknown = next((name for name in values if name not in Settings.model_fields), None)
    if unknown is not None:
        raise UserError(f"{_shown(unknown)}: no such setting; there are {', '.join(Settings.model_fields)}")
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(mistake(error)) from None


def mistake(error: ValidationError) -> str:
    """The first thing wrong, in one line: which setting, named as the command line's option, what, and what to do."""
    first = error.errors()[0]
    if not first["loc"]:
        return ALONE
    name = str(first["loc"][0])
    value = first["input"] if len(first["loc"]) == 1 else None  # one of several numbers says nothing
    given = "" if value is None else f" {_shown(value) or '(empty)'}"
    return f"--{name.replace('_', '-')}{given}: {EXPECTED[name]}"


def _shown(value: Any) -> str:
    """Its beginning, as text that any line can hold."""
    return " ".join(str(value).split())[:40].encode(errors="backslashreplace").decode()
