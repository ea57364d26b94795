"""Work that goes on beside the work that feeds it: in order, in one other thread that stands back, with only so much
of it waiting.

Does not know what is worked on.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Of 19. What is worked on comes from the thread that feeds: whenever that wants a core, it comes first.
NICENESS = 10


def _stand_back() -> None:
    """The calling thread, and threads that it starts, let others go first. Linux alone has a niceness for each."""
    if sys.platform == "linux":
        with suppress(OSError):
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(own, NICENESS))


def standing_back(make: Callable[[], R]) -> R:
    """What `make` returns, called in a thread that stands back: so do all threads that what was made keeps."""
    with ThreadPoolExecutor(1, initializer=_stand_back) as thread:
        return thread.submit(make).result()


@contextmanager
def ahead(
    work: Callable[[T], None], *, most: int, on_done: Callable[[int], None] | None
) -> Iterator[Callable[[T], None]]:
    """What is lent takes the next thing for `work`, and waits only while `most` of them are not done.

    `on_done` runs behind each thing with the number of those done, in the thread that feeds, and may raise to stop.
    What `work` raises is raised there too. The block ends when all is done; on an error behind the thing in work,
    and the rest is dropped.
    """
    waiting: deque[Future[None]] = deque()
    numbers = count(1)

    def settle(left: int) -> None:
        while waiting and (len(waiting) > left or waiting[0].done()):
            waiting.popleft().result()
            number = next(numbers)
            if on_done is not None:
                on_done(number)

    def feed(thing: T) -> None:
        settle(most - 1)
        waiting.append(thread.submit(work, thing))

    thread = ThreadPoolExecutor(1, thread_name_prefix="ltx-ahead", initializer=_stand_back)
    try:
        yield feed
        settle(0)
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
