"""The ``medcm`` command: finds the subcommand, which ``medcm_cli.commands`` has a module of, and offers
completions."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import NoReturn

from medcm_cli.commands.nearest import suggestion
from medcm_cli.errors import InputError

# What each command does. Its module is imported when it runs, for together they take seconds.
COMMANDS = {
    "simulate": "write virtual patients",
    "fit": "train models, one or a whole study",
    "data": "check an event table",
    "new": "write a configuration to start from, for an event table",
    "status": "say how far a study is, on whatever machines it runs",
    "summarize": "compare finished fits in tables",
    "plot": "draw what is in run folders",
    "report": "put it all on one page",
    "uncertainty": "standard errors and confidence intervals of estimates",
    "score": "OFV, AIC, BICc and held-out OFV of fits on one scale",
    "predict": "individual predictions of patients that a study has not seen",
    "dose": "the lowest dose that meets a target",
    "calibrate": "check that posteriors of random effects are right",
    "posterior": "sample random effects by NUTS",
    "distance": "compare posteriors of fits with draws of NUTS",
    "benchmark": "measure the speed of this machine",
    "help": "read the manual",
}


def main() -> NoReturn:
    """Entry point. Exit codes: 0 done, 1 internal error, 2 bad input or a file that cannot be read or
    written, 3 too little memory, a training process that was killed, or jobs of a multirun that failed, 130
    interrupted, 143 ended by SIGTERM."""
    arguments = sys.argv[1:]
    try:
        _heed_signals(_raising(_Terminated), _raising(KeyboardInterrupt))
        if arguments and arguments[0] in COMMANDS:
            _command(arguments[0])(arguments[1:])
        elif arguments and arguments[0] in ("-sc", "--shell-completion"):
            _complete(arguments)
        else:
            _top(arguments)
    except KeyboardInterrupt as interrupt:
        _heed_signals(signal.SIG_IGN, signal.SIG_IGN)
        word, code = ("terminated", 143) if isinstance(interrupt, _Terminated) else ("interrupted", 130)
        print(f"medcm: {word}; what is finished is kept", file=sys.stderr)
        sys.exit(code)
    except BrokenPipeError:  # the reader of our output went away, as in `medcm summarize ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        from medcm_cli.commands.terminal import ending

        text, code = ending(error)
        if code == 1 and os.environ.get("MEDCM_TRACEBACK"):
            raise
        print(f"medcm: {text}", file=sys.stderr)
        sys.exit(code)
    _heed_signals(signal.SIG_IGN, signal.SIG_IGN)  # all is done, but for tidying up
    sys.exit(0)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def _raising(kind: type[KeyboardInterrupt]) -> "_Handler":
    """A signal's handler. What it raises is lost where a finaliser or compiled code drops it, so that it is
    raised again until the command has ended."""

    def handler(*_: object) -> NoReturn:
        if hasattr(signal, "setitimer"):  # not on every system
            signal.signal(signal.SIGALRM, handler)
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        raise kind

    return handler


_AGAIN = 5.0  # s: tidying up takes less


def _heed_signals(terminate: "_Handler", interrupt: "_Handler") -> None:
    """What SIGTERM and Ctrl-C do; only the main thread can say."""
    if threading.current_thread() is threading.main_thread():
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGINT, interrupt)


_Handler = Callable[..., object] | signal.Handlers


def _command(name: str) -> Callable[[list[str]], None]:
    command: Callable[[list[str]], None] = import_module(f"medcm_cli.commands.{name}").command
    return command


def _top(arguments: list[str]) -> None:
    if not arguments:
        raise InputError("give a command; medcm --help lists them")
    if not arguments[0].startswith("-"):
        word = arguments[0]
        rest = suggestion(word, COMMANDS) or "; medcm --help lists them"
        raise InputError(f"{word}: no such command{rest}")
    from medcm_cli import __version__

    lines = (f"  {name:<11}  {what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="medcm",
        usage="medcm COMMAND [options]",
        description="Experiments with mixed-effects deep compartment models.",
        epilog="commands:\n"
        + "\n".join(lines)
        + "\n\nmedcm COMMAND --help lists the options of a command; medcm help opens the manual.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
    )
    parser.add_argument("--version", action="version", version=f"medcm {__version__}")
    _, unknown = parser.parse_known_args(arguments)  # ends where it is a flag that there is
    raise InputError(f"{unknown[0]}: medcm has no such flag{suggestion(unknown[0], ('--help', '--version'))}")


def _complete(arguments: list[str]) -> None:
    """Tab completion. Hydra's knows the options of ``fit``, but no commands, so it sees the line without."""
    program, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    command, typed, options = rest.lstrip().partition(" ")
    if not any(argument.startswith("query") for argument in arguments):
        _command("fit")(arguments)
    elif not typed:
        print(" ".join(COMMANDS))
    elif command == "help":
        from medcm_cli.commands.help import topics

        print(" ".join(topics()))
    elif command in ("fit", "posterior"):
        os.environ["COMP_LINE"] = f"{program} {options}"
        with suppress(InputError):  # a line that is not finished; nothing to offer, and no place to say so
            _command(command)(arguments)
