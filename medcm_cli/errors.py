"""What a user is told in one line: bad input, and a job that could not be finished."""


class InputError(ValueError):
    """Bad input: its message is the single line shown on stderr before exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class JobError(Exception):
    """Training could not go on: its message is the single line shown on stderr before exit code 3."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))
