"""The server under Ray Serve: what it refuses costs one line, and no replica is loaded for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from hallo3.serving.listening import listen

pytest.importorskip("ray.serve", reason="needs the extra `ray`")
SERVER = Path(__file__).parents[2] / "integrations" / "ray" / "server.py"


def refused(folder: Path, *words: str) -> str:
    """What the server says with a bundle that no replica could load; it must end by itself."""
    done = subprocess.run(
        [sys.executable, str(SERVER), "--bundle", str(folder / "none"), *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HALLO3_HOME": str(folder / "home")},
    )
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 1), done.stderr
    assert lines[0].startswith("hallo3: error: ")
    return lines[0]


@pytest.mark.slow
def test_a_port_in_use(tmp_path: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        said = refused(tmp_path, "--data", str(tmp_path / "data"), "--port", str(taken.getsockname()[1]))
    assert "can't listen there" in said


@pytest.mark.slow
def test_a_folder_that_is_none_or_in_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in refused(tmp_path, "--data", str(tmp_path / "file"), "--port", "0")
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / "server.lock"):
        assert "another server" in refused(tmp_path, "--data", str(tmp_path / "data"), "--port", "0")
