"""The wheel builds, holds what it should and nothing else, and works without the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("hallo3-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.slow
def test_contents(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")} == {"hallo3"}
    assert (unpacked / "hallo3" / "py.typed").exists()
    assert (unpacked / "hallo3" / "embedded" / "model_index.json").exists()
    shards = list((unpacked / "hallo3" / "embedded").rglob("*.safetensors"))
    assert max(path.stat().st_size for path in shards) <= 9e6
    assert sum(path.stat().st_size for path in shards) <= 30e6
    assert not list(unpacked.rglob("*.pt"))


@pytest.mark.slow
def test_works_without_the_checkout(unpacked: Path, tmp_path: Path) -> None:
    """The wheel's own package answers and finds its own bundle."""
    where = "import hallo3; print(hallo3.__file__)"
    for code in (where, "from hallo3.cli import main; raise SystemExit(main(['bundles']))"):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(unpacked)!r}); {code}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert str(unpacked) in "".join(done.stdout.split()) or code != where
    assert "embedded" in done.stdout
