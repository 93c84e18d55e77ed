"""The ComfyUI nodes, called as ComfyUI calls them: by the mapping, the declared types and the function's name."""

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from hallo3 import consent
from hallo3.errors import UserError
from hallo3.media.inspection import inspect
from hallo3.media.video import probe

PACKAGE = Path(__file__).parents[2] / "integrations" / "comfyui"
WIDGETS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


@pytest.fixture(scope="module")
def package() -> Any:
    """Loaded as ComfyUI loads a folder of custom_nodes."""
    spec = importlib.util.spec_from_file_location("comfyui_hallo3", PACKAGE / "__init__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_hallo3"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's module that knows its folders."""
    module = types.ModuleType("folder_paths")
    module.get_directory_by_type = lambda kind: str(tmp_path / kind)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "folder_paths", module)
    (tmp_path / "output").mkdir()
    return tmp_path / "output"


@pytest.fixture
def inputs(tiny_bundle: Path) -> dict[str, Any]:
    """What ComfyUI's own nodes give."""
    portrait = torch.from_numpy(np.array(tiny.portrait())).float()[None] / 255
    speech = torch.from_numpy(tiny.speech(0.6))[None, None]
    return {"portrait": portrait, "speech": {"waveform": speech, "sample_rate": 16_000}}


def run(package: Any, name: str, **given: Any) -> Any:
    node = package.NODE_CLASS_MAPPINGS[name]
    wanted = node.INPUT_TYPES()
    assert set(wanted["required"]) <= set(given) <= {name for group in wanted.values() for name in group}
    return getattr(node(), node.FUNCTION)(**given)


def test_the_declarations_are_what_comfyui_documents(package: Any) -> None:
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in package.NODE_CLASS_MAPPINGS.values():
        assert node.CATEGORY == "hallo3" and callable(getattr(node, node.FUNCTION))
        assert len(node.RETURN_TYPES) == len(getattr(node, "RETURN_NAMES", node.RETURN_TYPES))
        for kind, *options in (given for group in node.INPUT_TYPES().values() for given in group.values()):
            if isinstance(kind, list):
                assert kind and all(isinstance(choice, str) for choice in kind)
            elif kind in WIDGETS and "default" in (options or [{}])[0]:
                assert isinstance(options[0]["default"], WIDGETS[kind])


def test_the_graph_beside_the_nodes_fits_them(package: Any) -> None:
    graph = json.loads((PACKAGE / "hallo3.json").read_text())
    for node in graph.values():
        if node["class_type"].startswith("Hallo3"):
            types_of = package.NODE_CLASS_MAPPINGS[node["class_type"]].INPUT_TYPES()["required"]
            assert node["inputs"].keys() == types_of.keys()
            for name, value in node["inputs"].items():
                if isinstance(value, list) and graph[value[0]]["class_type"].startswith("Hallo3"):
                    source = package.NODE_CLASS_MAPPINGS[graph[value[0]]["class_type"]]
                    assert source.RETURN_TYPES[value[1]] == types_of[name][0]


def test_from_bundle_to_preview(package: Any, inputs: Any, output: Path, tiny_bundle: Path) -> None:
    (model,) = run(package, "Hallo3Load", bundle=str(tiny_bundle), device="cpu")
    given = {**inputs, "model": model, "prompt": "a woman talks", "seed": 3, "no_face": True, "steps": 1}
    frames, speech, fps, path = run(package, "Hallo3Animate", **given, i_have_the_rights=True)
    assert frames.shape == (15, tiny.HEIGHT, tiny.WIDTH, 3) and frames.dtype == torch.float32
    assert frames.min() >= 0 and frames.max() <= 1 and fps == 25
    assert speech["sample_rate"] == 16_000 and abs(speech["waveform"].shape[-1] / 16_000 - 0.6) < 0.05
    assert Path(path).parent == output and probe(Path(path)).frames == 15
    stated = inspect(Path(path))
    assert stated.tags and stated.tags["seed"] == 3 and stated.credentials
    made = Path(path).stat().st_mtime_ns
    assert run(package, "Hallo3Animate", **given, i_have_the_rights=True)[3] == path
    assert Path(path).stat().st_mtime_ns == made  # found again, not made again
    shown = run(package, "Hallo3Preview", video=path)
    assert shown["ui"]["images"] == [{"filename": Path(path).name, "subfolder": "", "type": "output"}]


def test_cancelled_and_queued_again(package: Any, inputs: Any, output: Path, tiny_bundle: Path) -> None:
    """ComfyUI cancels by an exception from a function that nodes call: the next run goes on after the last clip."""
    (model,) = run(package, "Hallo3Load", bundle=str(tiny_bundle), device="cpu")
    given = {**inputs, "model": model, "prompt": "", "seed": 1, "no_face": True, "i_have_the_rights": True}
    asked = []

    def cancel() -> None:
        asked.append(len(asked))
        if len(asked) > 6:
            raise InterruptedError

    management, utilities = types.ModuleType("comfy.model_management"), types.ModuleType("comfy.utils")
    management.throw_exception_if_processing_interrupted = cancel  # type: ignore[attr-defined]
    bars: list[tuple[int, int]] = []

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int) -> None:
            bars.append((value, total))

    utilities.ProgressBar = ProgressBar  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
        patch.setitem(sys.modules, "comfy.model_management", management)
        patch.setitem(sys.modules, "comfy.utils", utilities)
        with pytest.raises(InterruptedError):
            run(package, "Hallo3Animate", **given)
    assert bars and all(0 < done <= whole for done, whole in bars)
    assert [path.suffix for path in sorted(output.iterdir())] == [".part", ".state"]
    frames, *_, path = run(package, "Hallo3Animate", **given)
    assert len(frames) == 15 and [entry.name for entry in output.iterdir()] == [Path(path).name]


def test_mistakes_are_one_line(package: Any, inputs: Any, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**inputs, "model": ("embedded", None), "prompt": "", "seed": 0}
    monkeypatch.setenv(consent.VARIABLE, "")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(output / "nobody"))
    with pytest.raises(UserError, match="i_have_the_rights"):
        run(package, "Hallo3Animate", **given, i_have_the_rights=False)
    with pytest.raises(UserError, match="portrait"):
        run(package, "Hallo3Animate", **{**given, "portrait": torch.zeros(0, 4, 4, 3)}, i_have_the_rights=True)
    broken = {"waveform": torch.full((1, 1, 9000), torch.nan), "sample_rate": 16_000}
    with pytest.raises(UserError, match="speech"):
        run(package, "Hallo3Animate", **{**given, "speech": broken}, i_have_the_rights=True)
    with pytest.raises(UserError, match="outside"):
        run(package, "Hallo3Preview", video="/etc/hosts")
