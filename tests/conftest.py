"""What every test shares: one tiny bundle a process, and no network."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a whole bundle of the real classes, tiny and random."""
    import tiny

    return tiny.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
