"""What a user is told in one line: bad input, and a job that could not be finished."""

_BEGINNING, _END = 1500, 500  # characters that are kept of a line that quotes something long


class InputError(ValueError):
    """Bad input: its message is the single line shown on stderr before exit code 2, in which the middle of
    something long is left out: what is wrong stands first and what was expected last."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        if len(line) > _BEGINNING + _END:
            line = f"{line[:_BEGINNING]} ... {line[-_END:]}"
        super().__init__(line)


class JobError(Exception):
    """Training could not go on: its message is the single line shown on stderr before exit code 3."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))
