"""Stops of a state object as SD.Next has one: kept by whichever way they come, and nothing left on the object."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from modules.ltx.errors import Cancelled
from modules.ltx.hosts.sdnext import Resident, SDNextHost
from modules.ltx.hosts.sdnext_stops import remembered


class State:
    """The flags of SD.Next's state, and what sets and resets them."""

    interrupted = False
    skipped = False
    paused = False

    def interrupt(self) -> None:
        self.interrupted = True

    def skip(self) -> None:
        self.skipped = True

    def pause(self) -> None:
        self.paused = not self.paused

    def clear(self) -> None:
        self.paused = False

    def begin(self) -> None:
        self.clear()
        self.interrupted = False
        self.skipped = False

    def end(self) -> None:
        self.clear()


class Newer(State):
    """One that keeps a flag as a property."""

    _interrupted = False

    @property
    def interrupted(self) -> bool:
        return self._interrupted

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        self._interrupted = value


def elsewhere(call: Callable[[], Any]) -> None:
    """`call` in another thread, as a button or a route would."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def put(state: State, flag: str) -> Callable[[], None]:
    return lambda: setattr(state, flag, True)


@pytest.mark.parametrize("kind", [State, Newer])
@pytest.mark.parametrize("flag", ["interrupted", "skipped", "paused"])
@pytest.mark.parametrize("road", ["method", "bound before the job", "flag set", "in the job's own thread"])
def test_a_stop_outlives_the_jobs_that_are_nested_into_ours(kind: type[State], flag: str, road: str) -> None:
    state = kind()
    name = {"interrupted": "interrupt", "skipped": "skip", "paused": "pause"}[flag]
    bound = getattr(state, name)
    with remembered(state):
        state.begin()
        if road == "method":
            elsewhere(getattr(state, name))
        elif road == "bound before the job":
            elsewhere(bound)
        elif road == "flag set":
            elsewhere(put(state, flag))
        else:
            bound()
        for nested in (state.begin, state.end):
            nested()
            assert getattr(state, flag)
    assert type(state) is kind
    assert not any(name in vars(state) for name in ("interrupt", "skip", "pause"))


def test_what_the_ui_marks_in_the_jobs_own_thread_is_not_the_users() -> None:
    """It sets `interrupted` after errors; a job that is tried again with less memory must not end by that."""
    state = State()
    with remembered(state):
        state.interrupted = True
        assert state.interrupted
        state.begin()
        assert not state.interrupted


def test_a_pause_is_taken_back_by_the_user_alone() -> None:
    state = State()
    with remembered(state):
        elsewhere(state.pause)
        state.begin()
        assert state.paused
        elsewhere(state.pause)
        assert not state.paused
        state.begin()
        assert not state.paused


def test_a_job_of_another_thread_resets_nothing_of_ours() -> None:
    state = State()
    with remembered(state):
        state.interrupt()
        elsewhere(state.begin)
        assert state.interrupted


def test_an_error_gives_the_class_back() -> None:
    state = State()
    with pytest.raises(KeyboardInterrupt), remembered(state):
        raise KeyboardInterrupt
    assert type(state) is State


def test_a_cancel_ends_a_paused_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue's own cancel, which does not pass through the state."""
    state = State()
    monkeypatch.setattr("modules.ltx.hosts.sdnext.ui", lambda name: SimpleNamespace(state=state))
    host = SDNextHost(kept=Resident())
    state.pause()
    timer = threading.Timer(0.3, host.cancel)
    timer.start()
    with pytest.raises(Cancelled, match="interrupted; nothing was written"):
        host.poll()
    timer.join()


@pytest.mark.parametrize(("stop", "word"), [("interrupt", "interrupted"), ("skip", "skipped")])
def test_a_stop_ends_a_paused_job(monkeypatch: pytest.MonkeyPatch, stop: str, word: str) -> None:
    state = State()
    bound = getattr(state, stop)
    monkeypatch.setattr("modules.ltx.hosts.sdnext.ui", lambda name: SimpleNamespace(state=state))
    with remembered(state):
        state.pause()
        timer = threading.Timer(0.3, bound)
        timer.start()
        with pytest.raises(Cancelled, match=word):
            SDNextHost(kept=Resident()).poll()
        timer.join()
