"""Published weights from the hub: fetched so that an interruption costs nothing, checked by hash, converted.

The hub's own client starts a file again from nothing when a process was stopped (its partial files belong to one
process). Files here have up to 30 GB, so they are fetched into `…/downloads` by ranges instead; the client still does
the talking: endpoint, token, listing.
"""

import fnmatch
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..errors import UserError
from .card import CARD, write_card
from .convert import Report, Sources, convert, published_sources
from .index import PIPELINE_CLASS, read_index
from .layout import check_bundle
from .parts import INDEX, PARTS, read_json
from .places import HUB_NAME, home, registry
from .staging import staged_folder

KNOWN = {"hallo3": "fudan-generative-ai/hallo3", "cogvideox-5b-i2v": "THUDM/CogVideoX-5b-I2V"}
RETRIES = 5  # connections in a row that bring nothing
CHUNK = 1 << 20
PUBLISHED_FILES = (
    "cogvideox-5b-i2v-sat/vae/3d-vae.pt",
    "t5-v1_1-xxl/*",
    "wav2vec/wav2vec2-base-960h/*",
    "face_analysis/models/*",
    "audio_separator/Kim_Vocal_2.onnx",
)
DIFFUSERS_FILES = ("transformer/*", "vae/*", "text_encoder/*", "tokenizer/*")
BUNDLE_FILES = (INDEX, *(f"{part}/*" for part in PARTS), CARD, "LICENSE*")
UNWANTED = ("*.md", "*.h5", "*.msgpack", "*.gitattributes", "*.py", "*.onnx_data")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a hub repository. sha256: of large files; blob: git's hash of the others."""

    name: str
    size: int
    sha256: str | None
    blob: str


@dataclass(frozen=True)
class Repository:
    """A repository at one commit. name: owner/name."""

    name: str
    commit: str
    files: dict[str, RemoteFile]


def download(
    name: str,
    out: str | Path | None = None,
    *,
    revision: str = "main",
    dtype: torch.dtype | None = torch.bfloat16,
    max_shard_size: str | int = "5GB",
    keep_files: bool = False,
    on_download: Progress | None = None,
    on_convert: Progress | None = None,
) -> tuple[Path, Report]:
    """Fetches published weights and makes a bundle of them.

    Args:
        name: `hallo3`, `cogvideox-5b-i2v`, or owner/repository: in the published layout, diffusers', or a bundle.
        out: The bundle's folder; by default in the registry, under the repository's name.
        revision: Branch, tag or commit.
        dtype, max_shard_size: As for `convert`; a repository that is a bundle is taken as it is.
        keep_files: Keep the downloaded files once the bundle is made.
        on_download, on_convert: Called with bytes done and bytes in all.

    Returns:
        The bundle's folder and what was written.

    Raises:
        UserError: no network, no such repository, a file whose hash differs, no room, a bundle of this name exists.
    """
    full = KNOWN.get(name, name)
    if not HUB_NAME.fullmatch(full):
        raise UserError(f"{name}: not known; give {', '.join(KNOWN)} or OWNER/REPOSITORY of the hub")
    folder = Path(out) if out is not None else registry() / (name if name in KNOWN else full.split("/")[1])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists, and nothing is overwritten; remove it or choose another --out")
    repository = open_repository(full, revision)
    place = home() / "downloads" / full.replace("/", "--") / repository.commit
    with _only_one(place):
        layout = find_layout(repository, place)
        fetch(repository, _choose(repository, layout, place), place, on_download)
        notes = {"_hallo3_source": f"{full}@{repository.commit}"}
        if layout == "bundle":
            report = _adopt(place, folder, notes)
        else:
            options: dict[str, Any] = {"dtype": dtype, "max_shard_size": max_shard_size, "on_progress": on_convert}
            report = convert(_sources(place, layout), folder, notes=notes, **options)
        if not keep_files:
            shutil.rmtree(place, ignore_errors=True)
    return folder, report


# -------------------------------------------------------------------------------------------------------- which files


@contextmanager
def _hub_errors(name: str) -> Any:
    """What can go wrong between here and the hub, as one line."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    place = constants.ENDPOINT
    try:
        yield
    except hub.GatedRepoError:
        raise UserError(
            f"{name}: its owners want to be asked; accept their terms at {place}/{name}, then `hf auth login`"
        ) from None
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.EntryNotFoundError):
        raise UserError(
            f"{name}: {place} has no such repository or revision; check the name, or `hf auth login`"
        ) from None
    except hub.OfflineModeIsEnabled:
        raise UserError(f"{name}: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it") from None
    except (hub.HfHubHTTPError, httpx2.HTTPStatusError) as error:
        code = getattr(error.response, "status_code", "?")
        raise UserError(f"{name}: {place} answered {code}; try again later, what was fetched is kept") from None
    except (httpx2.HTTPError, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, ConnectionError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{name}: {place} can't be reached ({reason}); check the network and give the same command again"
        ) from None


def open_repository(name: str, revision: str) -> Repository:
    """The files of a hub repository at a revision, with their hashes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    with _hub_errors(name):
        try:
            info = HfApi().model_info(name, revision=revision, files_metadata=True)
        except HFValidationError:
            raise UserError(f"{name}: can't be the name of a repository; check it") from None
        except (KeyError, TypeError, ValueError):  # a portal's login page, say
            raise ConnectionError("what answers there is not the hub") from None
    files = {}
    for entry in info.siblings or []:
        path = PurePosixPath(entry.rfilename)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{name}: names the file {entry.rfilename!r} outside its folder; don't use this repository")
        sha256 = entry.lfs.sha256 if entry.lfs is not None else None
        if entry.size is None or (sha256 is None and entry.blob_id is None):
            continue  # nothing to compare it with
        files[entry.rfilename] = RemoteFile(entry.rfilename, entry.size, sha256, entry.blob_id or "")
    return Repository(name, info.sha or revision, files)


def find_layout(repository: Repository, place: Path) -> str:
    """`published`, `bundle` or `diffusers`, fetching the small file that tells them apart."""
    if "hallo3/latest" in repository.files:
        return "published"
    if INDEX in repository.files:
        fetch(repository, [INDEX], place)
        if read_json(place / INDEX).get("_class_name") == PIPELINE_CLASS:
            return "bundle"
    if "transformer/config.json" in repository.files:
        return "diffusers"
    raise UserError(f"{repository.name}: holds neither Hallo3, nor CogVideoX-5B-I2V, nor a bundle; check the name")


def _choose(repository: Repository, layout: str, place: Path) -> list[str]:
    patterns = {"bundle": BUNDLE_FILES, "diffusers": DIFFUSERS_FILES, "published": PUBLISHED_FILES}[layout]
    chosen = [n for n in repository.files if any(fnmatch.fnmatch(n, p) for p in patterns)]
    if layout != "bundle":
        chosen = [name for name in chosen if not any(fnmatch.fnmatch(name, p) for p in UNWANTED)]
    with_safetensors = {str(PurePosixPath(n).parent) for n in chosen if n.endswith(".safetensors")}
    pickled = (".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")
    chosen = [n for n in chosen if not (n.endswith(pickled) and str(PurePosixPath(n).parent) in with_safetensors)]
    if layout == "published":
        fetch(repository, ["hallo3/latest"], place)
        number = (place / "hallo3" / "latest").read_text(encoding="utf-8", errors="replace").strip()
        chosen += ["hallo3/latest", f"hallo3/{number}/mp_rank_00_model_states.pt"]
    return chosen


def _sources(place: Path, layout: str) -> Sources:
    if layout == "published":
        return published_sources(place)
    folders = {"denoiser": "transformer", "vae": "vae", "text_encoder": "text_encoder", "tokenizer": "tokenizer"}
    return Sources(**{name: place / folder for name, folder in folders.items() if (place / folder).is_dir()})


def _adopt(place: Path, out: Path, notes: Mapping[str, str]) -> Report:
    """A repository that is a bundle already: checked, then moved to its place, with a model card where it has none."""
    index = read_index(place)
    check_bundle(place, index.parts)
    with staged_folder(out) as stage:
        for entry in list(place.iterdir()):
            os.replace(entry, stage / entry.name)
        if not (stage / CARD).exists():
            write_card(out, stage, index.parts, index.config, {**index.notes, **notes})
    size = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    return Report(tuple(index.parts), size, index.missing, ())


# ----------------------------------------------------------------------------------------------------------- fetching


@contextmanager
def _only_one(place: Path) -> Any:
    lock = FileLock(place.parent / f"{place.name}.lock")
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{place}: another process is downloading this; wait for it") from None
    except OSError as error:
        raise UserError(f"{place}: can't be written ({error.strerror}); set HALLO3_HOME to another folder") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def fetch(repository: Repository, names: Iterable[str], place: Path, on_progress: Progress | None = None) -> None:
    """Brings files of a repository into a folder; those there already, whole or in part, are not fetched again.

    A file appears under its name only when its hash is the hub's. Raises UserError otherwise, and when the connection
    fails for good; what was fetched so far is kept.
    """
    files = []
    for name in dict.fromkeys(names):
        if name not in repository.files:
            raise UserError(f"{repository.name}: has no file {name}; it is not laid out as hallo3 expects")
        files.append(repository.files[name])
    total = sum(file.size for file in files)
    there = sum(min(_here(place / file.name), file.size) for file in files)
    if total - there > (free := shutil.disk_usage(place).free):
        needed = (total - there) / 1e9
        raise UserError(f"{place}: {needed:.1f} GB are to be fetched and {free / 1e9:.1f} GB are free; set HALLO3_HOME")
    done = 0
    for file in files:
        start = done

        def advance(count: int, start: int = start) -> None:
            if on_progress is not None:
                on_progress(start + count, total)

        _fetch_file(repository, file, place / file.name, advance)
        done += file.size
        advance(file.size)


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _here(target: Path) -> int:
    """Bytes of a file that are on this machine."""
    for path in (target, _part(target)):
        if path.exists():
            return path.stat().st_size
    return 0


def _fetch_file(repository: Repository, file: RemoteFile, target: Path, advance: Callable[[int], None]) -> None:
    if target.exists() and target.stat().st_size == file.size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target)
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    part.touch()
    with _hub_errors(repository.name):
        _fetch_whole(repository, file, part, advance)
    _check_hash(repository, file, part)
    os.replace(part, target)


def _fetch_whole(repository: Repository, file: RemoteFile, part: Path, advance: Callable[[int], None]) -> None:
    """Takes a broken connection up again, unless several in a row bring nothing."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    fruitless = 0
    while (before := part.stat().st_size) < file.size:
        try:
            _fetch_range(repository, file, part, advance)
        except (httpx2.TransportError, ConnectionError, HfHubHTTPError) as error:
            refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
            if refused or fruitless + 1 >= RETRIES:
                raise
        fruitless = 0 if part.stat().st_size > before else fruitless + 1
        if fruitless >= RETRIES:
            raise ConnectionError(f"{file.name}: the connection brings nothing")
        if fruitless:
            time.sleep(min(2.0**fruitless / 8, 10))


def _fetch_range(repository: Repository, file: RemoteFile, part: Path, advance: Callable[[int], None]) -> None:
    """Appends to `part` what it lacks, as far as one connection brings it."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(repository.name, file.name, revision=repository.commit)
    start = part.stat().st_size
    # `identity`: ranges count the file's own bytes, not those of a compressed transfer.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        hf_raise_for_status(response)
        resumed = response.status_code == 206
        with part.open("ab" if resumed else "wb") as output:
            count = start if resumed else 0
            for chunk in response.iter_bytes():  # as it comes: a break loses nothing
                count += len(chunk)
                if count > file.size:
                    raise UserError(
                        f"{repository.name}: {file.name} is longer than the hub says; nothing of it is used"
                    )
                output.write(chunk)
                advance(count)


def _check_hash(repository: Repository, file: RemoteFile, part: Path) -> None:
    if file.sha256 is not None:
        digest, expected = hashlib.sha256(), file.sha256
    else:  # small files carry git's hash, over a header and the content
        digest, expected = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False), file.blob
    with part.open("rb") as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        part.unlink()
        raise UserError(
            f"{repository.name}: {file.name} arrived damaged (its hash is not the hub's) and was deleted; "
            "give the same command again"
        )
