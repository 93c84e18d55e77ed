"""The index of a bundle, `model_index.json`: which parts it has, by which classes, and the pipeline's settings."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..networks.variants import sees_reference
from ..version import __version__
from .card import write_card
from .parts import INDEX, PARTS, Part, read_json

MISSING_KEY = "_hallo3_missing_parts"
PIPELINE_CLASS = "Hallo3Pipeline"

# What the published model was trained for (spec section 1 and 7).
PUBLISHED_CONFIG: dict[str, int | float] = {
    "sample_height": 480,
    "sample_width": 720,
    "num_frames": 49,
    "motion_frames": 2,
    "motion_mask": 0.1,
    "text_length": 226,
    "fps": 25,
    "num_inference_steps": 50,
    "speech_scale": 3.5,
    "text_scale": 3.5,
    "reference_scale": 1.0,
}


@dataclass(frozen=True)
class Index:
    """What `model_index.json` says.

    parts: name → (module, class) of every part that is there. config: the pipeline's configuration. notes: keys with a
    leading underscore, which no loader reads (version, where the weights came from). needless: parts that are not there
    because the denoiser takes nothing of them.
    """

    parts: Mapping[str, tuple[str, str]]
    config: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)
    needless: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in PARTS if name not in self.parts and name not in self.needless)


def read_index(folder: str | Path) -> Index:
    """The index of a bundle folder. Raises UserError when the folder is no bundle or its index is broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give a bundle's folder or name (`hallo3 bundles` lists them)")
    path = folder / INDEX
    if not path.exists():
        raise UserError(f"{folder}: is not a bundle, it has no {INDEX}; make one with `hallo3 convert`")
    values = read_json(path)
    if values.get("_class_name") != PIPELINE_CLASS:
        raise UserError(
            f"{path}: describes a {values.get('_class_name')}, not a {PIPELINE_CLASS}; convert it with `hallo3 convert`"
        )
    pairs = {name: _read_pair(path, PARTS[name], values[name]) for name in PARTS if name in values}
    parts = {name: pair for name, pair in pairs.items() if pair is not None}
    return Index(
        parts=parts,
        config={
            name: default if values.get(name) is None else values[name] for name, default in _defaults(path, values)
        },
        notes={name: value for name, value in values.items() if name.startswith("_")},
        needless=_needless(parts, folder),
    )


def _needless(parts: Mapping[str, tuple[str, str]], *folders: Path) -> tuple[str, ...]:
    """The reference network, where it is not among `parts` and the denoiser in the first of `folders` takes none."""
    found = [folder / "transformer" / "config.json" for folder in folders]
    config = next((path for path in found if path.is_file()), None)
    if "reference_network" in parts or "transformer" not in parts or config is None:
        return ()
    return () if sees_reference(read_json(config)) else ("reference_network",)


def _defaults(path: Path, values: Mapping[str, Any]) -> Iterable[tuple[str, int | float]]:
    for name, default in PUBLISHED_CONFIG.items():
        value = values.get(name, default)
        if isinstance(default, float):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"{path}: {name} is {value!r}, not a number; mend the index")
        elif isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise UserError(f"{path}: {name} is {value!r}, not a positive whole number; mend the index")
        yield name, default


def _read_pair(path: Path, part: Part, value: Any) -> tuple[str, str] | None:
    if not isinstance(value, list) or len(value) != 2:
        raise UserError(f"{path}: {part.name} is not a pair of module and class; copy or convert the bundle again")
    if value == [None, None]:
        return None
    for pair in part.classes:
        if pair[1] == value[1]:
            return pair
    raise UserError(
        f"{path}: {part.name} names the class {value[1]!r}, which hallo3 doesn't load; don't use this bundle"
    )


def write_index(
    folder: str | Path,
    parts: Mapping[str, tuple[str, str]],
    config: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    beside: Path | None = None,
) -> None:
    """Writes `model_index.json` atomically.

    parts: name → (module, class), see `PARTS`; those left out are listed as missing. config: pipeline configuration,
    published defaults where a value is not given. notes: further keys, with a leading underscore. beside: the folder
    that holds the parts which are not in `folder`.
    """
    unknown = (set(parts) - set(PARTS)) | (set(config or {}) - set(PUBLISHED_CONFIG))
    if unknown:
        raise ValueError(f"not parts or settings of a bundle: {sorted(unknown)}")
    values: dict[str, Any] = {"_class_name": PIPELINE_CLASS, "_hallo3_version": __version__, **(notes or {})}
    needless = _needless(parts, Path(folder), beside or Path(folder))
    values[MISSING_KEY] = [name for name in PARTS if name not in parts and name not in needless]
    values.update({name: list(parts.get(name, (None, None))) for name in PARTS})
    values.update(PUBLISHED_CONFIG | dict(config or {}))
    path = Path(folder) / INDEX
    draft = path.with_suffix(".json.partial")
    draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, path)


def missing_parts(folder: str | Path) -> tuple[str, ...]:
    """Names of the parts that a bundle lacks, in the order of `PARTS`; empty for a complete one."""
    return read_index(folder).missing


def extend_index(
    folder: Path,
    stage: Path,
    parts: Mapping[str, tuple[str, str]],
    config: Mapping[str, Any] | None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Writes into `stage` index and card of the bundle in `folder` (which may not exist yet) with `parts` added."""
    old = read_index(folder) if (folder / INDEX).exists() else Index({}, {})
    kept = {name: value for name, value in old.notes.items() if name not in ("_class_name", "_hallo3_version")}
    all_parts, told = {**old.parts, **parts}, kept | dict(notes or {})
    write_index(stage, all_parts, {**old.config, **(config or {})}, told, folder)
    write_card(folder, stage, all_parts, PUBLISHED_CONFIG | dict(old.config) | dict(config or {}), told)
