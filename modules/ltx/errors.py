"""The few errors a user can meet, each with the exit code its front door returns.

A message is one sentence or two: what was asked, what is allowed, what to do next. Nothing here
knows about HTTP, gradio or the terminal; front doors translate.
"""


class LTXError(Exception):
    """Anything this project refuses or fails at on purpose. `exit_code` is the command line's."""

    exit_code = 1


class RequestError(LTXError):
    """The request cannot be done as asked; nothing was read, loaded or written for it."""

    exit_code = 2


class HostError(LTXError):
    """The machine, a model folder or a file got in the way: missing, gated, unreadable, full."""


class OutOfMemory(LTXError):
    """The device ran out of memory in `phase`; the message says how much that holds, and what would hold less."""

    exit_code = 4

    def __init__(self, message: str, *, phase: str) -> None:
        super().__init__(message)
        self.phase = phase


class NotFinite(LTXError):
    """`tensor` of `phase` came out with NaN or infinity in it; nothing was made of it."""

    def __init__(self, message: str, *, phase: str, tensor: str) -> None:
        super().__init__(message)
        self.phase, self.tensor = phase, tensor


class Cancelled(LTXError):
    """The user stopped the job. Not a failure; nothing was written."""

    exit_code = 3
