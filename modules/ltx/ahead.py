"""Work that goes on beside the work that feeds it: in order, in one other thread, with only so much of it waiting.

Does not know what is worked on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import TypeVar

T = TypeVar("T")


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

    thread = ThreadPoolExecutor(1, thread_name_prefix="ltx-ahead")
    try:
        yield feed
        settle(0)
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
