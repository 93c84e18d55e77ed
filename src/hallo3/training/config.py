"""A training as a file: a phase, what it starts from, what it learns from, and where it goes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from hallo3.errors import UserError
from hallo3.training.phases import Phase

Model = TypeVar("Model", bound=BaseModel)


class Training(Phase):
    """A phase of training with everything around it; the fields of `Phase` stand beside these in the file.

    Attributes:
        start: Bundle whose weights it starts from: a folder, a name that `hallo3 bundles` lists, or a hub name.
        data: Folder of a dataset (`hallo3 studio dataset`).
        out: Folder of checkpoints, metrics, prepared data and, at the end, `bundle/`.
        device: `cpu`, `cuda`, …; auto takes a GPU if there is one.
        precision: Of the computation; weights, averages and the optimiser stay in float32.
        activation_checkpointing: Compute a layer again when its gradient is due, in place of keeping what it computed.
    """

    start: str = "embedded"
    data: Path
    out: Path
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _whole_clips(self) -> Self:
        if self.clip_frames % 4 != 1:
            raise ValueError(f"clip_frames is {self.clip_frames}; it must be 4k + 1: 17, 33 or 49")
        return self


def read_training(path: Path, settings: Sequence[str] = ()) -> Training:
    """Reads a training from YAML; `settings` (`loop.steps=100`) win over the file.

    Raises UserError naming the file or setting and the field that is wrong.
    """
    values = _read_yaml(path)
    for setting in settings:
        _put(values, setting)
    return validated(Training, values, path)


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
