"""The statement that comes before the first video: that the user has the right to the likeness and the voice."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from .errors import UserError
from .media.personal import keep, settings_folder

STATEMENT = (
    "I have the right to animate the people in the pictures that I give, and to use the voices in the recordings: they "
    "are mine, or those whose they are have agreed. I will not pass a result off as genuine."
)
OPTION, VARIABLE = "--i-have-the-rights", "HALLO3_I_HAVE_THE_RIGHTS"
_VERSION = 1  # of the statement; another one is asked for anew
_FILE = "consent.json"


def stated() -> bool:
    """Whether the user has made the statement: remembered on this machine, or by the environment for this process."""
    if os.environ.get(VARIABLE, "").lower() in ("1", "true", "yes"):
        return True
    try:
        kept = json.loads((settings_folder() / _FILE).read_bytes())
    except (OSError, ValueError, UserError):
        return False
    return isinstance(kept, dict) and kept.get("version") == _VERSION


def remember() -> str | None:
    """Keeps the statement. Returns a notice if that fails: it then holds for this run only."""
    kept = {"version": _VERSION, "statement": STATEMENT, "stated": datetime.now(UTC).isoformat(timespec="seconds")}
    only = "the statement of rights holds for this run only"
    try:
        path = settings_folder() / _FILE
        keep(path, json.dumps(kept, indent=1).encode())
    except UserError as error:
        return f"{only}: {error}"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return f"{only}: {path} cannot be written ({reason})"
    return None


def needed(portrait: Path) -> bool:
    """Whether this portrait needs the statement: any but the package's drawn sample, which is nobody's likeness."""
    from .bundles.places import embedded_bundle

    sample = embedded_bundle() / "sample" / "portrait.png"
    try:
        return portrait.stat().st_size != sample.stat().st_size or portrait.read_bytes() != sample.read_bytes()
    except (OSError, ValueError):  # ValueError: what can be no path; whoever reads it says so
        return True


def refused() -> UserError:
    """The error where nobody can be asked, or the answer is no."""
    return UserError(
        "rights: nothing is made before you state that you have the right to the likeness and the voice; say so once "
        f"with {OPTION}, or set {VARIABLE}=1 (docs/responsible-use.md)"
    )
