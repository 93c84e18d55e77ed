"""The state of an unfinished video: what is written, with which settings, and what the next clip needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import UserError
from .files import replace_file

_VERSION = 1


class CannotResume(UserError):
    """What an interrupted run has left is damaged, or of other settings or another version: only a new start helps."""


@dataclass
class Progress:
    """Clips and frames written so far; `carry`: the caller's arrays (last frames, random state), kept without loss."""

    clips: int = 0
    frames: int = 0
    carry: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


def save_progress(path: Path, progress: Progress, size: int, settings: Mapping[str, Any]) -> None:
    """Writes the state in one step. size: bytes of the unfinished video that count. Raises OSError."""
    facts = {
        "version": _VERSION,
        "clips": progress.clips,
        "frames": progress.frames,
        "bytes": size,
        "settings": dict(settings),
    }
    arrays = {name: np.ascontiguousarray(array) for name, array in progress.carry.items()}
    replace_file(path, save(arrays, {"hallo3": json.dumps(facts)}))


@dataclass(frozen=True)
class Written:
    """How far an unfinished video is: whole clips, their frames, the bytes that they end at."""

    clips: int
    frames: int
    bytes: int


def read_written(path: Path) -> Written | None:
    """How far a video is by its state, which its writer may replace meanwhile; None if there is none to read."""
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})["hallo3"])
        return Written(int(facts["clips"]), int(facts["frames"]), int(facts["bytes"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def load_progress(path: Path, settings: Mapping[str, Any]) -> tuple[Progress, int]:
    """The state and the number of bytes that count.

    Raises CannotResume if it is damaged or belongs to other settings, naming those that differ.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})["hallo3"])
            carry = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        before, size = facts["settings"], int(facts["bytes"])
        progress = Progress(int(facts["clips"]), int(facts["frames"]), carry)
        known = facts["version"] == _VERSION
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CannotResume(f"{path}: the saved state is damaged ({error}); start anew with --overwrite") from None
    if not known:
        raise CannotResume(f"{path}: written by another version of hallo3; start anew with --overwrite")
    changes = differences(before, settings)
    if changes:
        raise CannotResume(
            f"{path}: begun with other settings ({'; '.join(changes)}); use those again, or start anew with --overwrite"
        )
    return progress, size


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two sets of settings, in words; nested mappings, and JSON of them, are looked into."""
    found = []
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        inner_old, inner_new = _mapping(old), _mapping(new)
        if inner_old is not None and inner_new is not None:
            found += differences(inner_old, inner_new)
        else:
            found.append(f"{name} was {_short(old)}, now {_short(new)}")
    return found


def _mapping(value: Any) -> Mapping[str, Any] | None:
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
