"""The published schedule and solver, and guidance."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .guidance import Branch, GuidanceScales, branches, combine
    from .scheduler import Hallo3DPMScheduler, Hallo3DPMSchedulerOutput

__all__ = ["Branch", "GuidanceScales", "Hallo3DPMScheduler", "Hallo3DPMSchedulerOutput", "branches", "combine"]

_HOMES = {
    **dict.fromkeys(("Branch", "GuidanceScales", "branches", "combine"), "guidance"),
    **dict.fromkeys(("Hallo3DPMScheduler", "Hallo3DPMSchedulerOutput"), "scheduler"),
}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and diffusers take seconds.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
