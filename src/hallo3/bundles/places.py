"""Where bundles are (the package, the user's registry, the hub's cache, any folder), and from a name to a folder."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ..errors import UserError
from .index import PIPELINE_CLASS, read_index
from .parts import INDEX, PARTS, check_part, read_json

EMBEDDED = "embedded"
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
    """The user's hallo3 folder: `$HALLO3_HOME`, else `~/.cache/hallo3`."""
    given = os.environ.get("HALLO3_HOME")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "hallo3"


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
    local_files_only: bool = False,
    revision: str | None = None,
) -> Path:
    """The folder of a bundle given by path or name; a hub repository's files are fetched into the hub's cache.

    `embedded` is always the package's own; otherwise a bundle's folder wins over a name, and a name over a folder that
    only happens to be called so. parts: which parts to fetch from the hub; all by default. Raises UserError when there
    is no such bundle.
    """
    text = str(path_or_name)
    if path_or_name == EMBEDDED:
        if not (embedded_bundle() / INDEX).exists():
            raise UserError(
                "embedded: this copy of hallo3 carries no embedded bundle; "
                "install the wheel, or make it with `make embedded-model`"
            )
        return embedded_bundle()
    folder, known = Path(text).expanduser(), registry() / text
    named = isinstance(path_or_name, str) and text == known.name != ".." and known.is_dir()
    if folder.is_dir() and not (named and not (folder / INDEX).exists()):
        return folder
    if named:
        return known
    if isinstance(path_or_name, str) and HUB_NAME.fullmatch(text):
        return _fetch(text, list(PARTS) if parts is None else list(parts), local_files_only, revision)
    raise UserError(f"{text}: no such bundle; give a bundle's folder or one of the names that `hallo3 bundles` lists")


def _fetch(name: str, parts: list[str], local_files_only: bool, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = [INDEX, *(f"{part}/*" for part in parts)]
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
    if registry().is_dir():
        folders = sorted(path for path in registry().iterdir() if path.is_dir() and not path.name.startswith("."))
        found += [_describe(folder.name, folder, "registry") for folder in folders]
    return found + [_describe(name, folder, "hub cache") for name, folder in _hub_snapshots()]


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
