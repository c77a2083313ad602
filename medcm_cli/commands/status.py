"""``medcm status``: how far studies are, on whatever machines they are trained."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medcm_cli.commands.parser import Parser, number
from medcm_cli.commands.terminal import OUT, complain, show
from medcm_cli.errors import InputError

if TYPE_CHECKING:
    from medcm_cli.report.section import Section
    from medcm_cli.runs.progress import Method, Progress, Running

_LONGEST = 3600.0  # s
_SHORT = 120  # s, or more, is said in minutes, and so on
_NAMES = {"lr": "learning rate"}


def command(arguments: list[str]) -> None:
    """Do what the command line says. :raises InputError: a folder that is not there."""
    parser = Parser(
        "status",
        "Say how far studies are: what is done, in training and by whom, failed and left. Reads what is on "
        "disk, and so sees the jobs of every machine that shares it.",
    )
    parser.add_folders()
    parser.add_argument(
        "--watch",
        type=number(least=1, most=_LONGEST, unit="s"),
        metavar="SECONDS",
        help="look again every so many seconds, until nothing is left to be trained",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="also read every file of finished fits, as after copying, and name those that are damaged",
    )
    options = parser.read(arguments)

    from medcm_cli.runs.progress import Watch, damaged

    watch = Watch(options.folders)
    while True:
        progress = watch.look()
        if not progress.methods:
            where = ", ".join(map(str, options.folders))
            raise InputError(f"{where}: no run folder below it; `medcm fit` writes them")
        if options.watch is not None and OUT.is_terminal:
            OUT.clear()
        for section in sections(progress):
            show(section)
        OUT.print(headline(progress))
        complain("cannot be read:", progress.unread)
        if options.watch is None or not (_count(progress, "left") or _count(progress, "training")):
            break
        time.sleep(options.watch)
    if options.verify:
        found = damaged(progress)
        complain("damaged:", found)
        if found:
            raise InputError(f"{len(found)} fits are damaged; the same `medcm fit` trains them again")
        OUT.print("every file of finished fits is as it was written")


def headline(progress: "Progress") -> str:
    """All fits in one line, and how long what is left takes."""
    complete, failed, training, left = (
        _count(progress, name) for name in ("complete", "failed", "training", "left")
    )
    total = complete + failed + training + left
    text = f"{total} {'fit' if total == 1 else 'fits'}: {complete} complete, {failed} failed, "
    text += f"{training} in training, {left} left"
    rest = _remaining(progress, left)
    return text + (f"; about {_duration(rest)} at this rate" if rest is not None else "")


def sections(progress: "Progress") -> list["Section"]:
    """A table of methods, and one of the batches that are in training."""
    from medcm_cli.report.section import Section

    named = _labels(progress.methods)
    counts = ("complete", "failed", "training", "left")
    rows = [
        [*labels, *(str(len(getattr(method, name))) for name in counts)]
        for method, labels in zip(progress.methods, named.rows, strict=True)
    ]
    found = [Section("Fits", [*named.headers, "complete", "failed", "in training", "left"], rows)]
    batches = [
        [*labels, *_batch(batch)]
        for method, labels in zip(progress.methods, named.rows, strict=True)
        for batch in method.running
    ]
    if batches:
        headers = ["fits", "machine", "job", "epoch", "epochs/s", "done in", "last word"]
        found.append(Section("In training", [*named.headers, *headers], batches))
    return found


def _batch(batch: "Running") -> list[str]:
    claim = batch.claim
    silent = batch.silent
    rate = "" if silent or claim.rate is None else f"{claim.rate:.{0 if claim.rate >= 10 else 1}f}"
    left = None if silent else batch.left
    return [
        str(len(batch.fits)),
        claim.host,
        claim.job or f"process {claim.process}",
        f"{claim.epoch} of {claim.epochs}",
        rate,
        _duration(left) if left is not None else "",
        f"{_duration(batch.since)} ago" + (", is no more" if silent else ""),
    ]


class _Labels:
    """What tells methods apart: the parts of their folders in which they differ, and the objective."""

    def __init__(self, parts: Sequence[dict[str, str]]) -> None:
        names = list(dict.fromkeys(name for one in parts for name in one))
        kept = [n for n in names if n == "objective" or len({one.get(n) for one in parts}) > 1]
        self.headers = [_NAMES.get(name, name) for name in kept]
        self.rows = [[one.get(name, "") for name in kept] for one in parts]


def _labels(methods: Sequence["Method"]) -> _Labels:
    parts = []
    for method in methods:
        named = dict(part.split("=", 1) for part in method.folder.parts if "=" in part)
        first = next((n for n, part in enumerate(method.folder.parts) if "=" in part), None)
        study = (
            method.folder.resolve().parts[first - len(method.folder.parts) - 1] if first is not None else ""
        )
        parts.append({"study": study, **named})
    return _Labels(parts)


def _count(progress: "Progress", name: str) -> int:
    return sum(len(getattr(method, name)) for method in progress.methods)


def _remaining(progress: "Progress", left: int) -> float | None:
    """Until all is done, s, if as many go on at the present rate; None where there is none yet."""
    batches = [batch for m in progress.methods for batch in m.running if not batch.silent]
    rates = [len(batch.fits) * batch.claim.rate for batch in batches if batch.claim.rate]
    if not rates:
        return None
    epochs = [len(batch.fits) * (batch.claim.epochs - batch.claim.epoch) for batch in batches]
    whole = max(batch.claim.epochs for batch in batches)
    return (sum(epochs) + left * whole) / sum(rates)


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("min", 60.0)):
        if seconds < _SHORT * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h"
