"""hallo3: talking portraits from one image, a recording of speech and a line of text (Hallo3, CVPR 2025)."""

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .pipeline import Hallo3Pipeline

__all__ = ["Hallo3Pipeline", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and diffusers take seconds, `hallo3 --help` must not.
    if name == "Hallo3Pipeline":
        from .pipeline import Hallo3Pipeline

        return Hallo3Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
