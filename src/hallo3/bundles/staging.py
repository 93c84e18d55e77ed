"""A folder that appears under its name only when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import FULL, UserError


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Gives a hidden folder beside `out` to write into; what it holds moves to `out` when the block ends without error.

    If the process dies the hidden folder stays, named so that nothing takes it for a bundle; the next run for the same
    `out` removes it. `out` may exist: then the staged entries are moved into it one by one, in their order of name with
    `model_index.json` last, so that an index never speaks of a part that is not there yet.

    Raises UserError when the place can't be written or another process is writing to it.
    """
    out = Path(os.path.abspath(out))
    stage = out.parent / f".{out.name}.partial"
    lock = FileLock(out.parent / f".{out.name}.lock")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{out}: another process is writing this bundle; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{out}: can't be written ({reason}); choose another place") from None
    try:
        if stage.exists():
            shutil.rmtree(stage)
        stage.mkdir()
        yield stage
        _publish(stage, out)
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"{out}: can't be written ({reason}); nothing of it is kept: make room, then give the same command again"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _publish(stage: Path, out: Path) -> None:
    if not out.exists():
        os.replace(stage, out)
        return
    for entry in sorted(stage.iterdir(), key=lambda path: (path.name == "model_index.json", path.name)):
        target = out / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(entry, target)
