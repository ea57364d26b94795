"""Interrupt, skip and pause of SD.Next, kept for the time of a job, whichever way they arrive.

The UI keeps them as three flags of its state object. Buttons, API routes and extensions set them, often through bound
methods that they took when the pages were built, and each job that the UI nests into ours (saving, a base pass, loading
a model) resets them when it begins. So the flags themselves are watched: for the time of a job the state object has a
subclass of its own class, in which they are properties.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType, FunctionType
from typing import Any

# The flag that each method of the state sets.
_METHODS = {"interrupted": "interrupt", "skipped": "skip", "paused": "pause"}
# Methods that reset the flags for a job of their own.
_RESETTING = ("begin", "end", "clear")


@dataclass
class Stops:
    """What the user has asked of the running job: the flags, which only the user takes back.

    `thread`: the one that runs the job. A flag that is set in another thread is set by the user or for the user. In
    the job's own thread only the state's own methods speak for the user; other code marks what ended early.
    """

    thread: int = field(default_factory=threading.get_ident)
    asked: dict[str, bool] = field(default_factory=dict)

    def by_user(self, setter: FrameType, methods: dict[str, CodeType], flag: str) -> bool:
        """Whether the code that is about to set `flag` speaks for the user."""
        code = setter.f_code
        if code is methods.get(_METHODS[flag]):
            return True
        if any(code is methods.get(name) for name in _RESETTING):
            return False
        return threading.get_ident() != self.thread


@contextmanager
def remembered(state: Any) -> Iterator[None]:
    """While borrowed, the flags of the UI's `state` stay as the user set them, whatever resets them meanwhile."""
    theirs, stops = type(state), Stops()
    known = {name: getattr(theirs, name, None) for name in (*_METHODS.values(), *_RESETTING)}
    methods = {name: method.__code__ for name, method in known.items() if isinstance(method, FunctionType)}
    flags = {flag: _flag(flag, theirs, stops, methods) for flag in _METHODS}
    state.__class__ = type(theirs.__name__, (theirs,), {**flags, "__module__": theirs.__module__})
    try:
        yield
    finally:
        state.__class__ = theirs


def _flag(name: str, theirs: type, stops: Stops, methods: dict[str, CodeType]) -> property:
    """The property that stands for a flag: what the user asked, else what the UI itself set."""
    own = getattr(theirs, name, False)  # the value before anybody set one, or the UI's own property

    def get(state: Any) -> bool:
        set_by_ui = own.__get__(state) if isinstance(own, property) else vars(state).get(name, own)
        return bool(stops.asked.get(name) or set_by_ui)

    def put(state: Any, value: bool) -> None:
        if stops.by_user(sys._getframe(1), methods, name):
            stops.asked[name] = bool(value)
        if isinstance(own, property):
            own.__set__(state, value)
        else:
            vars(state)[name] = value

    return property(get, put)
