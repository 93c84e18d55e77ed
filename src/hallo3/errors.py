"""Errors that are the user's to mend: one line that says what, where and what to do."""

import errno
import logging
import os
import traceback


class UserError(Exception):
    """Bad input. The command line prints the message as one line and exits with code 2; no traceback is shown.

    The message names the input (a path, an option), what is wrong with it and the remedy, in that order.
    """


def users_to_mend(error: BaseException) -> bool:
    """Whether the user can mend it: bad input, a full disk, too little memory. Anything else is a bug of ours."""
    return isinstance(error, UserError) or _disk_is_full(error) or _memory_ran_out(error)


def in_one_line(error: BaseException) -> str:
    """What to tell people of an error: always one line, with what to do."""
    if isinstance(error, UserError):
        text = str(error)
    elif _disk_is_full(error):
        text = "the disk is full: free some space; an animation goes on with --resume"
    elif _memory_ran_out(error):
        text = "memory ran out: close other programs, use a smaller bundle, or a machine with more memory"
    else:
        text = f"a bug in hallo3 ({type(error).__name__}: {error}); HALLO3_DEBUG=1 shows where, please report it"
    return " ".join(text.split())


def show_bug(error: BaseException) -> None:
    """Prints where an error came from, if it is a bug and `HALLO3_DEBUG` is set."""
    if os.environ.get("HALLO3_DEBUG") and not users_to_mend(error):
        traceback.print_exception(error)


def _disk_is_full(error: BaseException) -> bool:
    told_by_sqlite = "database or disk is full" in str(error)
    return told_by_sqlite or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


def _memory_ran_out(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


_CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


def hush_libraries() -> None:
    """Silences what torchao, where it is installed, makes others say at each start: nothing that a user can mend."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
