"""Tensors in, tensors out: the networks of Hallo3 (no files, no device choice)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conditions import DenoiserConditions
    from .denoiser import Hallo3Transformer3DModel
    from .reference import ReferenceNetwork

__all__ = ["DenoiserConditions", "Hallo3Transformer3DModel", "ReferenceNetwork"]

_HOMES = {"DenoiserConditions": "conditions", "Hallo3Transformer3DModel": "denoiser", "ReferenceNetwork": "reference"}


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and diffusers take seconds.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
