"""Signals that ask a program to stop, noted until there is a good moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import Any


class StopRequests:
    """Notes the first of some signals, in place of its usual effect.

    Another signal takes its usual effect at once, so that a program that does not stop can be
    stopped.

    Args:
        numbers: the signals.

    Raises:
        TypeError: they are no signals.
        ValueError: they are no signals of this system, or this is not the main thread.

    Attributes:
        received: the signal; None as long as there was none.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self.received: signal.Signals | None = None
        wanted = [signal.Signals(number) for number in numbers]
        if wanted and threading.current_thread() is not threading.main_thread():
            raise ValueError("save_on_signal works in the main thread only: open it there")
        self._usual: dict[signal.Signals, Any] = {}
        self._handler = self._note
        try:
            for number in wanted:
                self._usual[number] = signal.getsignal(number)
                signal.signal(number, self._handler)
        except OSError as error:
            self._usual.popitem()
            self.restore()
            raise ValueError(f"save_on_signal: {number!r} cannot be caught") from error

    def restore(self) -> None:
        """Give the signals back the effects they had."""
        while True:
            try:
                number, usual = self._usual.popitem()
            except KeyError:  # of a check before, a signal could come in between
                return
            if signal.getsignal(number) is self._handler:
                signal.signal(number, signal.SIG_DFL if usual is None else usual)

    def _note(self, number: int, _frame: Any) -> None:
        self.received = signal.Signals(number)
        self.restore()
