"""The page's folder of temporary files: which of those that others have left may go."""

import os
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from hallo3.web.temporary import LOCK, PREFIX, own_folder


def test_what_a_killed_run_left_goes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names = ("left", "used", "new", "unlocked")
    places = {name: tmp_path / f"{PREFIX}{name}" for name in names}
    for name, place in places.items():
        place.mkdir()
        (place / "likeness.png").write_bytes(b"x")
        if name != "unlocked":
            (place / LOCK).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / LOCK).touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "elsewhere")
    with FileLock(places["used"] / LOCK):
        for name in ("left", "used"):
            os.utime(places[name] / LOCK, (0, 0))
        os.utime(tmp_path / "elsewhere" / LOCK, (0, 0))
        with own_folder() as own:
            assert own.stat().st_mode & 0o077 == 0
            found = sorted(name for name, place in places.items() if place.exists())
    assert found == ["new", "unlocked", "used"] and not own.exists()
    assert (tmp_path / "elsewhere" / LOCK).exists(), "what a link leads to is not ours"
