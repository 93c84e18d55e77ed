"""What one user keeps on this machine: the signing certificate, the statement of rights."""

import os
import sys
from pathlib import Path

from ..errors import UserError
from .files import replace_file


def settings_folder() -> Path:
    """`$HALLO3_HOME`, else where the system keeps settings: `~/.config/hallo3`, or its like on macOS and Windows.

    Raises UserError for a user without a home folder.
    """
    try:
        return _settings_folder()
    except RuntimeError:
        raise UserError("settings: this user has no home folder; set HALLO3_HOME to a folder to keep them in") from None


def _settings_folder() -> Path:
    given = os.environ.get("HALLO3_HOME")
    if given:
        return Path(given).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "hallo3"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "hallo3"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hallo3"


def keep(path: Path, data: bytes) -> None:
    """Writes a file that no other user can read, in one step; makes its folder. Raises OSError.

    Any number of processes may do so at once, as when the first videos of a machine are made side by side.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, data, mode=0o600, alone=False)
