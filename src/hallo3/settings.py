"""What a job may ask for beside its portrait and its speech, as a row of a file or a form on the network names it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .errors import UserError

if TYPE_CHECKING:
    from .animation import AnimationRequest

Scale = Annotated[float | None, Field(allow_inf_nan=False)]


def _four_numbers(value: Any) -> Any:
    """`8 8 30 30` or `8,8,30,30`, as one cell of a table and one field of a form hold it."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


class Settings(BaseModel):
    """Settings of one video; the same words and ranges in a batch and on the server.

    Attributes:
        prompt: Who is seen, what they do, and where.
        seed: Same seed, same machine: same frames.
        steps: Sampling steps; more is finer and slower. The bundle's own if left out.
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

    prompt: str = Field(default="", max_length=4000)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    steps: int | None = Field(default=None, ge=1, le=1000)
    speech_scale: Scale = None
    text_scale: Scale = None
    reference_scale: Scale = None
    framing: Literal["auto", "pad", "crop"] = "auto"
    crf: int = Field(default=18, ge=1, le=51)
    face: int | None = Field(default=None, ge=0)
    face_box: Annotated[tuple[float, float, float, float] | None, BeforeValidator(_four_numbers)] = None
    no_face: bool = False

    def request(self, portrait: Path, speech: Path, output: Path, **common: Any) -> "AnimationRequest":
        """The whole request. common: what the settings don't hold: bundle, marks, certificate."""
        from .animation import AnimationRequest

        values = self.model_dump()
        return AnimationRequest(portrait, speech, output, face_index=values.pop("face"), **values, **common)


def read_settings(values: Mapping[str, Any]) -> Settings:
    """Settings from names and values; numbers may be text, as in a table. Raises UserError naming the first mistake."""
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(mistake(error)) from None


def mistake(error: ValidationError) -> str:
    """The first thing wrong, in one line: which setting, what, and what may stand there."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    if first["type"] == "extra_forbidden":
        return f"{name[:40]}: no such setting; there are {', '.join(Settings.model_fields)}"
    given = " ".join(str(first["input"]).split())
    reason = first["msg"].removeprefix("Value error, ")
    return f"{name}: {reason[:1].lower()}{reason[1:]}, not {given[:40] or 'empty'}; correct it, or leave it out"
