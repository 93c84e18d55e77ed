"""The notebook runs from its first cell to its last."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra `dev`")
nbclient = pytest.importorskip("nbclient", reason="needs the extra `dev`")
NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "first_video.ipynb"


def test_no_outputs_are_committed() -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client.manager import AsyncKernelManager

    notebook = nbformat.read(NOTEBOOK, 4)
    monkeypatch.chdir(tmp_path)  # the kernel's folder too, where both look for the sockets
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc")  # no port is opened
    nbclient.NotebookClient(notebook, km=kernel, startup_timeout=300, timeout=500).execute()
    said = [
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4
    assert "a clip of 9 frames, 1.6 s so far" in "".join(said)
    measured = dict(re.findall(r"^(true|generated): correlation (-?[0-9.]+)", "".join(said), flags=re.MULTILINE))
    assert float(measured["true"]) >= 0.9 and "generated" in measured
