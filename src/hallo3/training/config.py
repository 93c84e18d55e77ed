"""A training as a file: a phase, what it starts from, what it learns from, and where it goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hallo3.errors import UserError
from hallo3.training.loop import LoopSettings
from hallo3.training.phases import Phase
from hallo3.training.vae import VaeSettings

Model = TypeVar("Model", bound=BaseModel)


class Lora(BaseModel):
    """Low-rank adapters: beside every linear layer that the phase trains, two narrow ones are trained in its place.

    Attributes:
        rank: Width between the two. alpha: their product counts alpha/rank times.
        dropout: Share of inputs that the adapters don't see in training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Validation(BaseModel):
    """Videos made while training, always of the same clips and seeds.

    Attributes:
        every: Steps between two looks.
        data: Dataset whose first clips are spoken again; the training's own if not given.
        count: Clips. seconds: of each, at most. steps: sampling steps; the bundle's if not given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    every: int = Field(ge=1)
    data: Path | None = None
    count: int = Field(default=2, ge=1)
    seconds: float = Field(default=2.0, gt=0)
    steps: int | None = Field(default=None, ge=1)


class Training(Phase):
    """A phase of training with everything around it; the fields of `Phase` stand beside these in the file.

    Attributes:
        start: Bundle whose weights it starts from: a folder, a name that `hallo3 bundles` lists, or a hub name.
            Published Hallo3 and CogVideoX-5B-I2V become bundles by `hallo3 convert`.
        scratch: Take the bundle's encoders, VAE and sizes, and networks with new weights.
        data: Folder of a dataset (`hallo3 studio dataset`).
        out: Folder of checkpoints, metrics, prepared data and, at the end, `bundle/`.
        device: `cpu`, `cuda`, …; auto takes a GPU if there is one.
        precision: Of the computation; weights, averages and the optimiser stay in float32.
        speech_conditioning, identity_conditioning: One of the paper's ways to condition (`networks/variants.py`) in
            place of the bundle's; what is new in it starts without effect.
        lora: Train adapters in place of the linear layers' weights; they are added to the weights at the end.
        spread: Launched by torchrun, spread weights, gradients and the optimiser over the processes (FSDP2); else each
            process holds all of them.
        validation: Videos on the way; none if not given.
        activation_checkpointing: Compute a layer again when its gradient is due, in place of keeping what it computed.
        seed: Of new weights, of what is prepared, and of the batches unless `loop.seed` says otherwise.
    """

    start: str = "embedded"
    scratch: bool = False
    data: Path
    out: Path
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    speech_conditioning: Literal["cross", "joint", "norm"] | None = None
    identity_conditioning: Literal["none", "face", "face_norm", "reference", "both"] | None = None
    lora: Lora | None = None
    spread: bool = True
    validation: Validation | None = None
    activation_checkpointing: bool = False
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _whole_clips(self) -> Self:
        if self.clip_frames % 4 != 1:
            raise ValueError(f"clip_frames is {self.clip_frames}; it must be 4k + 1: 17, 33 or 49")
        return self


class VaeTraining(BaseModel):
    """The training of a VAE; a file with `loss` is one.

    Attributes:
        data: Dataset that it sees. photographs: Folder of stills that it sees too.
        out: Folder of checkpoints, metrics and, at the end, `bundle/`: a partial one with the VAE alone.
        start: Bundle whose VAE it goes on from; without it a new one of the embedded bundle's sizes, or of `sizes`.
        sizes: What a new VAE has other than the embedded one: `block_out_channels`, …
        crop: Side in pixels of most pictures; from four fifths of the steps on every third batch is a whole frame.
        clip_frames: Frames of a clip, 8k + 1: an odd number of latent frames, which is decoded in one piece. The first
            fifth of the steps, and a third after that, are stills.
        seed: Of new weights, and of the batches unless `loop.seed` says otherwise.
        loss: What it is trained for.
        loop: Steps, optimiser, averaging.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: Path
    photographs: Path | None = None
    out: Path
    start: str | None = None
    sizes: dict[str, Any] = Field(default_factory=dict)
    crop: int = Field(default=64, ge=16, multiple_of=8)
    clip_frames: int = Field(default=9, ge=9)
    seed: int = Field(default=0, ge=0)
    loss: VaeSettings
    loop: LoopSettings

    @model_validator(mode="after")
    def _whole_clips(self) -> Self:
        if self.clip_frames % 8 != 1:
            raise ValueError(f"clip_frames is {self.clip_frames}; it must be 8k + 1: 9, 17, 33")
        return self


def read_training(path: Path, settings: Sequence[str] = ()) -> Training | VaeTraining:
    """Reads a training from YAML; `settings` (`loop.steps=100`) win over the file.

    Raises UserError naming the file or setting and the field that is wrong.
    """
    values = read_settings(path, settings)
    if "loss" in values:
        return validated(VaeTraining, values, path)
    return validated(Training, values, path)


def read_settings(path: Path, settings: Sequence[str]) -> dict[str, Any]:
    """What stands in a file; `settings` (`loop.steps=100`) win over it. Raises UserError for what can't be read."""
    values = _read_yaml(path)
    for setting in settings:
        _put(values, setting)
    return values


def validated(model: type[Model], values: Any, path: Path) -> Model:
    """The model of the values. Raises UserError naming the first field that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {place}: {first['msg']}; see configs/ for examples") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: can't be read as YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no settings; see configs/ for examples")
    return values


def _put(values: dict[str, Any], setting: str) -> None:
    """Puts `a.b=value` (value in YAML) into nested dictionaries."""
    name, equals, text = setting.partition("=")
    if not equals or not name:
        raise UserError(f"{setting}: give settings as name=value, such as loop.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{setting}: the value is no YAML ({' '.join(str(error).split())[:100]})") from error
    *groups, last = name.split(".")
    for group in groups:
        values = values.setdefault(group, {})
        if not isinstance(values, dict):
            raise UserError(f"{setting}: {group} is a value, not a group of settings")
    values[last] = value
