"""From what people type to a bundle's folder."""

import shutil
from pathlib import Path

import pytest

from hallo3.bundles.places import embedded_bundle, published_name, registry, resolve
from hallo3.errors import UserError


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle in the registry under the name `known`; the current folder is empty."""
    monkeypatch.setenv("HALLO3_HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    bundle = registry() / "known"
    bundle.mkdir(parents=True)
    (bundle / "model_index.json").write_text("{}")
    return bundle


def test_a_name_is_found_in_the_registry(known: Path) -> None:
    assert resolve("known") == known


def test_a_folder_that_only_happens_to_be_called_so_does_not_hide_a_name(known: Path) -> None:
    Path("known").mkdir()
    assert resolve("known") == known
    assert resolve("./known") == Path("known")
    assert resolve("..") == Path("..")


def test_a_bundle_in_the_current_folder_wins(known: Path) -> None:
    Path("known").mkdir()
    Path("known/model_index.json").write_text("{}")
    assert resolve("known") == Path("known")


def test_embedded_is_always_the_packages_own(known: Path) -> None:
    Path("embedded").mkdir()
    assert resolve("embedded") == embedded_bundle()


@pytest.mark.parametrize("name", ["../bundles/known", "nothing", "a/b/c"])
def test_no_such_bundle(known: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such bundle"):
        resolve(name)


def test_what_is_told_of_a_bundle(known: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Names are told as they are; of a path only its end, and a digest of what lies there."""
    for name in ("embedded", "known", "someone/model"):
        assert published_name(name) == (name, None)
    name, digest = published_name(tiny_bundle)
    assert name == "tiny" and digest is not None and digest.startswith("blake2b-64:")
    shutil.copytree(tiny_bundle, tmp_path / "elsewhere" / "tiny")
    assert published_name(str(tmp_path / "elsewhere" / "tiny")) == (name, digest)
    weights = next((tmp_path / "elsewhere" / "tiny" / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    other = published_name(tmp_path / "elsewhere" / "tiny")
    assert other[0] == "tiny" and other[1] not in (None, digest)
    assert published_name("/home/me/gone") == ("gone", None) == published_name("~nosuch/gone")
    Path("known").mkdir()
    assert published_name("./known")[0] == "known" and published_name("./known")[1] is not None
    (tmp_path / "caf\udce9").mkdir()
    published_name(tmp_path / "caf\udce9")[0].encode()
