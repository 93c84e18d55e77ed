"""Where bundles are (the package, the user's registry, the hub's cache, any folder), and from a name to a folder."""

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from ..errors import UserError
from .index import PIPELINE_CLASS, read_index
from .parts import INDEX, PARTS, check_part, read_json

EMBEDDED = "embedded"
NO_HOME = "home: this user has no home folder; set HALLO3_HOME to a folder that models and jobs may go to"
_ENDS = 1 << 20  # bytes of a file's beginning and end that stand for it
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class FoundBundle:
    """A bundle on this machine.

    name: what commands take. folder: where it is. kind: embedded, registry or hub cache. size: bytes on disk. missing:
    parts it lacks. problem: why it can't be used, empty if it can.
    """

    name: str
    folder: Path
    kind: str
    size: int
    missing: tuple[str, ...]
    problem: str = ""


def home() -> Path:
    """The user's hallo3 folder: `$HALLO3_HOME`, else `~/.cache/hallo3`. Raises UserError for a user without a home."""
    given = os.environ.get("HALLO3_HOME")
    try:
        return Path(given).expanduser() if given else Path.home() / ".cache" / "hallo3"
    except RuntimeError:
        raise UserError(NO_HOME) from None


def registry() -> Path:
    """The folder whose sub-folders are bundles known by name."""
    return home() / "bundles"


def embedded_bundle() -> Path:
    """The folder of the bundle that comes with the package."""
    return Path(str(files("hallo3") / "embedded"))


def resolve(
    path_or_name: str | Path,
    *,
    parts: Iterable[str] | None = None,
    weights: bool = True,
    local_files_only: bool = False,
    revision: str | None = None,
) -> Path:
    """The folder of a bundle given by path or name; a hub repository's files are fetched into the hub's cache.

    `embedded` is always the package's own; otherwise a bundle's folder wins over a name, and a name over a folder that
    only happens to be called so. parts: which parts to fetch from the hub; all by default. weights: False fetches their
    configurations and nothing else. Raises UserError when there is no such bundle.
    """
    text = str(path_or_name)
    if path_or_name == EMBEDDED:
        if not (embedded_bundle() / INDEX).exists():
            raise UserError(
                "embedded: this copy of hallo3 carries no embedded bundle; "
                "install the wheel, or make it with `make embedded-model`"
            )
        return embedded_bundle()
    folder, known = _of_a_home(text), _known(path_or_name)
    if folder.is_dir() and (known is None or (folder / INDEX).exists()):
        return folder
    if known is not None:
        return known
    if isinstance(path_or_name, str) and HUB_NAME.fullmatch(text):
        files = [f"{part}/{'*' if weights else 'config.json'}" for part in (PARTS if parts is None else parts)]
        words = ["README.md", "LICENSE*"] if weights else []
        return _fetch(text, [INDEX, *words, *files], local_files_only, revision)
    raise UserError(f"{text}: no such bundle; give a bundle's folder or one of the names that `hallo3 bundles` lists")


def _of_a_home(text: str) -> Path:
    """A path in which `~` and `~user` stand for a home, where there is one."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def _known(name: str | Path) -> Path | None:
    """The folder in the registry that a name stands for; None where there is none."""
    try:
        folder = registry() / name
    except UserError:
        return None  # without a home nothing is known by name, but paths still lead somewhere
    return folder if isinstance(name, str) and name == folder.name != ".." and folder.is_dir() else None


def published_name(path_or_name: str | Path) -> tuple[str, str | None]:
    """What results and servers tell of a bundle: its name, and for a folder given by its path a digest.

    A path names people and machines. The digest is of the index, and of size, beginning and end of every other file.
    """
    text = str(path_or_name)
    folder = _of_a_home(text)
    if text == EMBEDDED or (_known(path_or_name) is not None and not (folder / INDEX).exists()):
        return text, None
    if not folder.is_dir():
        return text if HUB_NAME.fullmatch(text) else _printable(folder.name), None
    folder = folder.resolve()
    return _printable(folder.name), _digest(folder, tuple((path, *_state(path)) for path in _files(folder)))


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".onnx", ".task"))


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=16)
def _digest(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path, size, _ in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode(errors="surrogateescape"))
        with open(path, "rb") as file:
            digest.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    return f"blake2b-64:{digest.hexdigest()}"


def _fetch(name: str, patterns: list[str], local_files_only: bool, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = snapshot_download(
            name,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=patterns,
            ignore_patterns=["*.bin", "*.pt", "*.pth", "*.ckpt", "*.py"],
        )
    except LocalEntryNotFoundError:
        raise UserError(
            f"{name}: not on this machine, and the hub ({_endpoint()}) can't be reached; "
            "check the network or give a folder"
        ) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(f"{name}: the hub ({_endpoint()}) has no such repository or revision; check the name") from None
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: can't be fetched from {_endpoint()} ({reason}); check the network") from None
    return Path(found)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def list_bundles() -> list[FoundBundle]:
    """Every bundle on this machine (embedded, registry, hub cache); a broken one carries the reason."""
    found = []
    if (embedded_bundle() / INDEX).exists():
        found.append(_describe(EMBEDDED, embedded_bundle(), "embedded"))
    found += [_describe(folder.name, folder, "registry") for folder in _registered()]
    return found + [_describe(name, folder, "hub cache") for name, folder in _hub_snapshots()]


def known_names() -> list[str]:
    """Names of the embedded bundle and of those in the registry; reads nothing of them: to complete a word by."""
    return [EMBEDDED, *(folder.name for folder in _registered())]


def _registered() -> list[Path]:
    try:
        place = registry()
    except UserError:
        return []
    if not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _hub_snapshots() -> list[tuple[str, Path]]:
    """Snapshots in the hub's cache that hold one of our bundles, the newest of each repository."""
    from huggingface_hub import constants

    newest: dict[str, Path] = {}
    for index in Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/*/{INDEX}"):
        try:
            if read_json(index).get("_class_name") != PIPELINE_CLASS:
                continue
        except UserError:
            continue
        name = index.parents[2].name.removeprefix("models--").replace("--", "/", 1)
        if name not in newest or index.stat().st_mtime > (newest[name] / INDEX).stat().st_mtime:
            newest[name] = index.parent
    return sorted(newest.items())


def _describe(name: str, folder: Path, kind: str) -> FoundBundle:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    try:
        index = read_index(folder)
        for part in index.parts:
            check_part(folder / part, PARTS[part])
    except UserError as error:
        return FoundBundle(name, folder, kind, size, (), str(error))
    return FoundBundle(name, folder, kind, size, index.missing)
