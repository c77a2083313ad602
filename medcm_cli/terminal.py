"""Where a person reads: the two consoles, and the one line for bad input."""

import sys
from typing import NoReturn

from rich.console import Console

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def refuse(error: Exception) -> NoReturn:
    """Say what is wrong in one line on stderr and exit with code 2."""
    print(f"medcm: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(2)
