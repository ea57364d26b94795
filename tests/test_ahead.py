"""Work beside the work that feeds it: the order, how much waits, and every way out."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from modules.ltx.ahead import NICENESS, ahead, standing_back


def test_all_is_done_in_order_in_one_other_thread_and_told_where_it_is_fed() -> None:
    done: list[tuple[int, str]] = []
    told: list[tuple[int, str]] = []

    def name() -> str:
        return threading.current_thread().name

    def work(number: int) -> None:
        done.append((number, name()))

    with ahead(work, most=3, on_done=lambda number: told.append((number, name()))) as feed:
        for number in range(20):
            feed(number)
    assert [number for number, _ in done] == list(range(20))
    assert [number for number, _ in told] == list(range(1, 21))
    assert {where for _, where in told} == {name()}
    assert len({where for _, where in done} | {name()}) == 2


def test_no_more_than_so_many_wait() -> None:
    gate = threading.Event()
    fed: list[int] = []

    def work(_: int) -> None:
        gate.wait(10)

    def begin() -> None:
        with ahead(work, most=3, on_done=None) as feed:
            for number in range(6):
                feed(number)
                fed.append(number)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join(0.3)
    assert fed == [0, 1, 2]
    gate.set()
    thread.join(10)
    assert fed == list(range(6))


def test_an_error_of_the_work_is_raised_where_it_is_fed_and_the_rest_is_dropped() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        if number == 2:
            raise OSError("full")
        done.append(number)

    def feeding() -> None:
        with ahead(work, most=1, on_done=None) as feed:
            for number in range(10):
                feed(number)

    with pytest.raises(OSError, match="full"):
        feeding()
    assert done == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ltx-ahead")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_of_who_feeds_stops_the_work(error: type[BaseException]) -> None:
    begun, gate = threading.Event(), threading.Event()
    done: list[int] = []

    def work(number: int) -> None:
        begun.set()
        gate.wait(10)
        done.append(number)

    def feeding() -> None:
        with ahead(work, most=5, on_done=None) as feed:
            feed(0)
            feed(1)
            begun.wait(10)
            threading.Timer(0.1, gate.set).start()
            raise error

    with pytest.raises(error):
        feeding()
    assert done == [0]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
def test_what_works_stands_back_and_what_feeds_does_not() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    seen: list[int] = []
    mine = niceness()
    with ahead(lambda _: seen.append(niceness()), most=2, on_done=None) as feed:
        feed(None)
    assert seen == [max(mine, NICENESS)]
    assert standing_back(niceness) == seen[0]
    assert niceness() == mine
