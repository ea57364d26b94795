"""A pipeline's call watched from outside: what it returned or raised, whatever the caller makes of either.

SD.Next's `process_images` turns most errors of a pipeline into a preview image that it returns as success, and some it
lets through without cleaning up. So the call never raises there, and the error is raised behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from PIL import Image

from modules.ltx.errors import HostError


@dataclass
class Call:
    """The one call of a pipeline that was watched."""

    calls: int = 0
    output: Any = None
    error: BaseException | None = None

    def result(self) -> Any:
        """What the pipeline returned. Raises what it raised, or HostError where it was never called."""
        if self.error is not None:
            raise self.error
        if self.calls != 1:
            raise HostError(f"the web UI ran the base pass {self.calls} times instead of once; its log says more")
        return self.output


@contextmanager
def captured(pipe: Any) -> Iterator[Call]:
    """While borrowed, calling `pipe` answers with one small black picture and keeps what really came out.

    `pipe.__class__` is a subclass of the same name and with the same signature, so that whoever looks at the class
    sees no difference. KeyboardInterrupt and the like go through, and are kept as well.
    """
    theirs, call = type(pipe), Call()

    @functools.wraps(theirs.__call__)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        call.calls += 1
        try:
            call.output = theirs.__call__(self, *args, **kwargs)
        except Exception as error:
            call.error = error
        except BaseException as error:
            call.error = error
            raise
        return SimpleNamespace(images=[Image.new("RGB", (8, 8))])

    names = {"__call__": watched, "__module__": theirs.__module__, "__qualname__": theirs.__qualname__}
    try:
        pipe.__class__ = type(theirs.__name__, (theirs,), names)
        yield call
    finally:
        pipe.__class__ = theirs
