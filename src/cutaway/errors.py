"""The one exception that means "the user can fix this": one clear line and exit code 2, never a traceback."""


class UserError(Exception):
    """A mistake in what the user gave us: what is wrong, where, and what would be right, on one line."""


class Stopped(Exception):
    """A graceful stop on a signal, after a checkpoint was written; `code` is the exit code that shells expect."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
