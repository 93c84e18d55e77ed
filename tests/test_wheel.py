"""The wheel and the source archive build, hold what git holds and nothing else, and work without the checkout."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABOUT = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """Files that git knows, as they are in the checkout."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("what belongs into the wheel is asked of git, and this is no checkout")
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tracked: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make dist` leaves, of a checkout in which an earlier build has left what is no longer there."""
    checkout, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for name in tracked:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, checkout / name)
    (checkout / "build" / "lib" / "hallo3").mkdir(parents=True)
    (checkout / "build" / "lib" / "hallo3" / "stale.py").write_text("left by an earlier build")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(checkout)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    return out


@pytest.fixture(scope="module")
def unpacked(built: Path) -> Path:
    (wheel,) = built.glob("hallo3-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "unpacked")
    return built / "unpacked"


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_contents(unpacked: Path, tracked: set[str]) -> None:
    (about,) = unpacked.glob("*.dist-info")
    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/hallo3/")}
    assert files_in(unpacked) - {f"{about.name}/{name}" for name in ABOUT} == package
    assert files_in(about) == ABOUT
    for name in package:
        assert (unpacked / name).read_bytes() == (ROOT / "src" / name).read_bytes(), name
    shards = list((unpacked / "hallo3" / "embedded").rglob("*.safetensors"))
    assert max(path.stat().st_size for path in shards) <= 9e6
    assert sum(path.stat().st_size for path in shards) <= 30e6
    assert {"hallo3/embedded/README.md", "hallo3/py.typed", "hallo3/web/style.css"} <= package
    assert not [name for name in package if name.endswith((".pt", ".pth", ".ckpt", ".bin"))]


@pytest.mark.slow
def test_the_source_archive(built: Path, tracked: set[str]) -> None:
    """The package, how it is built, and nothing that git does not hold; a wheel can be made of it, as it was here."""
    (archive,) = built.glob("hallo3-*.tar.gz")
    with tarfile.open(archive) as contents:
        names = {name.partition("/")[2] for name in contents.getnames() if not contents.getmember(name).isdir()}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in names if name.startswith("src/hallo3.egg-info/")}
    assert names - made <= tracked
    package = {name for name in tracked if name.startswith("src/hallo3/")}
    assert package | {"pyproject.toml", "README.md", "LICENSE"} <= names


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
