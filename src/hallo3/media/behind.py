"""Work that goes on in a thread of its own while its caller makes the next piece."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

Piece = TypeVar("Piece")


class OneBehind(Generic[Piece]):
    """Does `work` on piece after piece, in order, never more than one behind: nothing piles up.

    done: called with each piece when its work is done, in the caller's thread, at the next `put`, `look` or `wait`.
    What `work` raises is raised there too. A context manager: leaving it waits for the piece in hand, so that what is
    begun is whole, whatever ended the caller.
    """

    def __init__(self, work: Callable[[Piece], None], done: Callable[[Piece], None]) -> None:
        self._work, self._done = work, done
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hallo3 writing")
        self._at_work: tuple[Future[None], Piece] | None = None

    def put(self, piece: Piece) -> None:
        """Waits for the piece before, then begins with this one."""
        self.wait()
        self._at_work = self._thread.submit(self._work, piece), piece

    def look(self) -> None:
        """Takes note of a piece that is done; does not wait."""
        if self._at_work is not None and self._at_work[0].done():
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is left to do."""
        if self._at_work is not None:
            future, piece = self._at_work
            future.result()
            self._at_work = None
            self._done(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
