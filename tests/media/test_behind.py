"""Work one piece behind: in order, bounded, its errors raised, and whole when the caller is stopped."""

import threading

import pytest

from hallo3.errors import UserError
from hallo3.media.behind import OneBehind
from waiting import until


def test_in_order_and_never_more_than_one() -> None:
    made: list[int] = []
    told: list[tuple[int, str]] = []
    with OneBehind(made.append, lambda piece: told.append((piece, threading.current_thread().name))) as behind:
        for piece in range(5):
            behind.put(piece)
            assert len(told) == piece, "the piece before is done, and said so"
        behind.wait()
    main = threading.current_thread().name
    assert made == list(range(5)) and told == [(piece, main) for piece in range(5)]


def test_the_caller_goes_on_meanwhile() -> None:
    may_end, told = threading.Event(), list[str]()
    with OneBehind(lambda _: may_end.wait(60), told.append) as behind:
        behind.put("first")
        behind.look()
        assert told == []  # reached while the work goes on
        may_end.set()
        behind.wait()
    assert told == ["first"]


@pytest.mark.parametrize("way", ["put", "look", "wait"])
def test_what_the_work_raises_comes_to_the_caller(way: str) -> None:
    failed = threading.Event()

    def work(piece: str) -> None:
        try:
            raise UserError(f"{piece}: the disk is full")
        finally:
            failed.set()

    told: list[str] = []
    with pytest.raises(UserError, match="first: the disk is full"), OneBehind(work, told.append) as behind:
        behind.put("first")
        failed.wait(60)
        if way == "look":
            until(behind.look)  # it raises once it has seen
        behind.put("second") if way == "put" else behind.wait()
    assert told == []


def test_what_is_begun_is_ended_when_the_caller_is_stopped() -> None:
    began, made = threading.Event(), list[str]()

    def work(piece: str) -> None:
        began.set()
        threading.Event().wait(0.05)
        made.append(piece)

    with pytest.raises(KeyboardInterrupt), OneBehind(work, lambda _: None) as behind:
        behind.put("first")
        began.wait(60)
        raise KeyboardInterrupt
    assert made == ["first"]
