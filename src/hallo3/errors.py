"""Errors that are the user's to mend: one line that says what, where and what to do."""

import errno
import logging
import os
import traceback

FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name))
"""What the system answers where a file can't grow: no room, a quota, a limit on its size."""


class UserError(Exception):
    """Bad input. The command line prints the message as one line and exits with code 2; no traceback is shown.

    The message names the input (a path, an option), what is wrong with it and the remedy, in that order.
    """


class Stopped(Exception):
    """Ctrl-C, from a command that says itself what stopping it means: the message."""


class Ended(BaseException):
    """Another of the processes that work on one video is gone; this one can't go on.

    No `Exception`: what was being made is not to blame, and goes on in another run. line: what to tell people; None
    when that has been done. code: the exit code of them all.
    """

    def __init__(self, line: str | None, code: int) -> None:
        super().__init__(line)
        self.line, self.code = line, code


def users_to_mend(error: BaseException) -> bool:
    """Whether the user can mend it: bad input, a full disk, too little memory. Anything else is a bug of ours."""
    return isinstance(error, UserError) or disk_is_full(error) or _memory_ran_out(error)


def in_one_line(error: BaseException) -> str:
    """What to tell people of an error: always one line, with what to do."""
    if isinstance(error, UserError):
        text = str(error)
    elif disk_is_full(error):
        text = "the disk is full: free some space; an animation goes on with --resume"
    elif _memory_ran_out(error):
        text = "memory ran out: close other programs, use a smaller bundle, or a machine with more memory"
    else:
        text = f"a bug in hallo3 ({type(error).__name__}: {error}); HALLO3_DEBUG=1 shows where, please report it"
    return " ".join(text.split())


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a full disk, or the user's share of it, is behind an error: a line for users tells it by its cause."""
    if error is None:
        return False
    told_by_sqlite = "database or disk is full" in str(error)
    told_by_system = isinstance(error, OSError) and error.errno in FULL
    return told_by_sqlite or told_by_system or disk_is_full(error.__cause__)


def show_bug(error: BaseException) -> None:
    """Prints where an error came from, if it is a bug and `HALLO3_DEBUG` is set."""
    if os.environ.get("HALLO3_DEBUG") and not users_to_mend(error):
        traceback.print_exception(error)


def _memory_ran_out(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


_CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def hush_libraries() -> None:
    """Silences what torchao, where it is installed, makes others say at each start: nothing that a user can mend."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
