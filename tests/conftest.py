"""What every test shares: one tiny bundle a process, settings of its own, and no network."""

import os
from collections.abc import Iterator
from pathlib import Path

# What is set for the user's own work is not for the tests, which start servers and processes with settings of theirs.
_FOREIGN = ("HALLO3_HOME", "HALLO3_TOKEN", "HALLO3_CERTIFICATE", "HALLO3_PRIVATE_KEY", "RANK", "WORLD_SIZE", "HF_TOKEN")
for _name in _FOREIGN:
    os.environ.pop(_name, None)
# MKL adds in another order where weights don't lie on 16 bytes, which those mapped from a file need not: not with this.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HALLO3_I_HAVE_THE_RIGHTS", "1")  # test_consent.py takes it away

import pytest  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Signing certificate and statement of rights: not those of whoever runs the tests."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("settings"))


@pytest.fixture(autouse=True)
def own_gradio() -> Iterator[None]:
    """Gradio knows one folder of uploads a process: a test that runs `hallo3 web` in this one leaves it to the next."""
    before = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
    yield
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a whole bundle of the real classes, tiny and random."""
    import tiny

    return tiny.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with speech for either split: tests don't need a synthesiser."""
    import shutil
    import zlib

    from hallo3.bundles.places import embedded_bundle

    folder = tmp_path_factory.mktemp("recordings")
    held_out = next(n for n in range(99) if zlib.crc32(f"{n}.wav".encode()) % 5 == 0)
    known = next(n for n in range(99) if zlib.crc32(f"{n}.wav".encode()) % 5)
    for number in (held_out, known):
        shutil.copy(embedded_bundle() / "sample" / "speech.wav", folder / f"{number}.wav")
    return folder
