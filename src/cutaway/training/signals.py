"""A graceful stop: signals set a flag that the loop reads at the end of a step."""

import signal
from types import FrameType


class StopFlag:
    """Which signal asked for a stop, if one did."""

    signal: int | None = None


class StopSignals:
    """While training, SIGINT and SIGTERM ask for a stop at the end of the step; a second SIGINT stops at once."""

    def __enter__(self) -> StopFlag:
        self.flag, self.before = StopFlag(), {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                return self.flag
        return self.flag

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.flag.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.flag.signal = number

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
