"""The one exception for what a user can mend."""


class InputError(ValueError):
    """Bad input: its message is the single line shown on stderr before exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))
