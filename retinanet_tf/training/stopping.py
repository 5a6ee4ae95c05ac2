"""Being stopped: signals wait until a step is done, so that the state can be saved."""

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Inside its `with` block SIGTERM and Ctrl-C only leave a note; a second Ctrl-C interrupts at once.

    `signal` is the number of the signal that came, 0 until then. Outside the main thread, where Python allows no
    handlers, the block changes nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Takes the two signals over."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def leave(self) -> None:
        """Ends the process as the signal asked: KeyboardInterrupt, or SystemExit with 128 + its number (143)."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.signal)
