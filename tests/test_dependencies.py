"""What hallo3 requires may be used by whoever uses hallo3: licences are permissive, or NOTICE.md tells of them."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PERMISSIVE = re.compile(
    r"\b(0?BSD|MIT|Apache|ISC|PSF|Python Software Foundation|Zlib|CC0|CNRI-Python|BSL-1\.0|Mozilla Public|MPL-2\.0)"
)
EXTRAS = ("train", "vocals", "faces", "serve", "web", "quantized", "ray", "docs")


def required(extras: tuple[str, ...] = ()) -> dict[str, importlib.metadata.Distribution]:
    """All that an installation of hallo3 with these extras brings, by name; what is not installed is left out."""
    found: dict[str, importlib.metadata.Distribution] = {}
    open_names: list[tuple[str, frozenset[str]]] = [("hallo3", frozenset(extras))]
    seen = set()
    while open_names:
        name, wanted = open_names.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if name.startswith(("nvidia-", "cuda-")):  # what PyTorch brings for a GPU, by its maker's licence
            continue
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in found[name].requires or []:
            requirement = Requirement(text)
            asked = [{"extra": extra} for extra in (wanted or {""})]
            if requirement.marker is None or any(requirement.marker.evaluate(values) for values in asked):
                open_names.append((requirement.name, frozenset(requirement.extras)))
    return found


def licence(distribution: importlib.metadata.Distribution) -> str:
    """What its own metadata say, by the newest of the three ways of saying it."""
    fields = distribution.metadata
    classifiers = [line.split(" :: ")[-1] for line in fields.get_all("Classifier", []) if line.startswith("License ::")]
    return fields.get("License-Expression") or "; ".join(classifiers) or (fields.get("License") or "").split("\n")[0]


def is_permissive(words: str) -> bool:
    """Whether a licence is one of the permissive ones, and none of what it names asks for more."""
    return bool(PERMISSIVE.search(words)) and not re.search(r"GPL|NonCommercial|Non-Commercial", words)


def test_what_is_required_is_permissively_licensed() -> None:
    brought = required()
    assert {"torch", "diffusers", "numpy", "safetensors"} <= set(brought)  # the search went down
    assert not {name: licence(d) for name, d in brought.items() if not is_permissive(licence(d))}


def test_extras_of_another_licence_are_named_in_the_notices() -> None:
    notices = (ROOT / "NOTICE.md").read_text()
    for name, distribution in required(EXTRAS).items():
        if not is_permissive(licence(distribution)):
            assert name in notices, f"{name} ({licence(distribution) or 'its metadata name no licence'})"


def test_gpl_libraries_inside_a_wheel_are_named_in_the_notices() -> None:
    """PyAV's own licence is BSD, the FFmpeg in its wheels is not."""
    files = [str(file) for file in importlib.metadata.files("av") or []]
    if not any("libx264" in file or "libx265" in file for file in files):
        pytest.skip("this PyAV was built without x264 and x265")
    notices = (ROOT / "NOTICE.md").read_text()
    assert "x264" in notices and "GPL" in notices
