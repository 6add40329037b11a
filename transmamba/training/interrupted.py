"""How a run ends that was asked to stop."""

from __future__ import annotations

import signal


class Interrupted(BaseException):
    """The run was asked to stop, was saved, and can be resumed. `code`: the exit status that says so.

    It is no `Exception`, which readers of data take for a fault of theirs.
    """

    def __init__(self, name: str, code: int) -> None:
        super().__init__(name)
        self.code = code


# a job's manager sends SIGTERM and wants 0 of a run that is saved; Ctrl-C is 130 as everywhere
SIGNALS = {signal.SIGTERM: 0, signal.SIGINT: 130}
