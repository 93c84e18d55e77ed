"""The figures of the documents are what their scripts draw."""

import importlib
import re
import sys
from pathlib import Path

import pytest

matplotlib = pytest.importorskip("matplotlib", reason="needs the extra `train`")
FIGURES = Path(__file__).parents[2] / "docs" / "figures"
NAMES = sorted(path.stem for path in FIGURES.glob("*.py") if path.stem != "drawing")


@pytest.fixture(autouse=True)
def scripts_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FIGURES))
    for name in ("drawing", *NAMES):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "operations")) for name in NAMES]
)
def test_the_committed_picture_is_what_its_script_draws(name: str, tmp_path: Path) -> None:
    """`make figures` draws it anew. Another matplotlib may place its texts otherwise, but they must be the same."""
    drawing = importlib.import_module("drawing")
    with matplotlib.rc_context(drawing.STYLE):
        made = drawing.save(importlib.import_module(name).draw(), name, tmp_path).read_text()
    committed = (drawing.IMAGES / f"{name}.svg").read_text()
    texts = re.findall(r"<!-- (.*?) -->", committed)
    assert texts and re.findall(r"<!-- (.*?) -->", made) == texts
    if f"Matplotlib v{matplotlib.__version__}," in committed:
        assert made == committed


def test_every_picture_in_the_documents_has_its_script() -> None:
    used = {
        found for page in FIGURES.parent.glob("*.md") for found in re.findall(r"images/(\w+)\.svg", page.read_text())
    }
    assert used == set(NAMES)
