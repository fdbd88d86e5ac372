"""The one exception that users see, and nothing else."""

from __future__ import annotations


class UserError(Exception):
    """Something the user or the admin can mend: what is wrong, and what to do about it.

    ``message`` names the file, the key, the value and the limit in one line; ``hint`` says
    what to do. ``exit_code`` is 1 for a failed run and 2 for input that cannot be taken.
    """

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class BadInputError(UserError):
    """Input that cannot be taken (a wrong value, key, path or file): exit code 2."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, exit_code=2)
