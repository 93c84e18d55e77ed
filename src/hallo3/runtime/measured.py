"""Choices made by measuring on this machine, and remembered in the user's cache folder."""

import json
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import diffusers
import torch
from filelock import FileLock, Timeout

from ..bundles.places import home
from ..errors import UserError
from ..media.files import replace_file

FILE = "measured.json"


def wait_for(device: torch.device) -> None:
    """Returns when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds_of(ways: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int = 3) -> dict[str, float]:
    """Median seconds of each way, all in turn, so that what else the machine does meets all alike.

    The round before the first is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            wait_for(device)
            began = time.perf_counter()
            way()
            wait_for(device)
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def remembered(about: Mapping[str, Any], names: Collection[str], choose: Callable[[], str]) -> str:
    """What `choose()` gave when it was last asked about the same, on this device, with these versions of libraries.

    about: all that the choice depends on beside those, with `device`; as JSON. names: what may be chosen. A cache
    folder that can't be written only means that it is measured again.
    """
    device = torch.device(about["device"])
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    key = json.dumps({**about, **versions, "device": machine, "names": sorted(names)}, sort_keys=True)
    known = _read().get(key)
    if known is not None and known in names:
        return known
    chosen = choose()
    try:
        home().mkdir(parents=True, exist_ok=True)
        with FileLock(home() / f"{FILE}.lock", timeout=5):
            replace_file(home() / FILE, json.dumps(_read() | {key: chosen}, indent=1).encode())
    except (OSError, Timeout, UserError):
        pass
    return chosen


def _read() -> dict[str, str]:
    try:
        found = json.loads((home() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, UserError):
        return {}
    return found if isinstance(found, dict) else {}
