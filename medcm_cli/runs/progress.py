"""How far studies are: what is done, in training, failed and left, by what is on disk. Reads alone."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medcm_cli.errors import InputError
from medcm_cli.runs.claims import PREFIX, Claim, read_claims
from medcm_cli.runs.folder import FINISHED, RECORD, read_finished, read_record, separate, visited
from medcm_cli.runs.planned import FOLDER, planned

_WITHIN = ("fold=", "outer=", "inner=", "replicate=")  # folders of a fit below that of its method


@dataclass(frozen=True)
class Running:
    """A batch that some process claims. ``since``: s since its last word. ``fits``: those not finished."""

    folder: Path
    claim: Claim
    since: float
    fits: frozenset[str]

    @property
    def silent(self) -> bool:
        """Whether its process is no more."""
        return self.claim.silent(self.since)

    @property
    def left(self) -> float | None:
        """Until it is done, s; None where that is not known."""
        rate = self.claim.rate
        return (self.claim.epochs - self.claim.epoch) / rate if rate else None


@dataclass
class Method:
    """The fits of a method of a study, by the names of their folders."""

    folder: Path
    wanted: set[str] = field(default_factory=set)
    complete: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)  # have a record that is not finished
    running: list[Running] = field(default_factory=list)

    @property
    def training(self) -> set[str]:
        """Fits that a living process has in training."""
        return {fit for batch in self.running if not batch.silent for fit in batch.fits}

    @property
    def left(self) -> set[str]:
        """Fits that are neither finished nor in training."""
        return (self.wanted | self.begun) - self.complete - self.failed - self.training


@dataclass(frozen=True)
class Progress:
    """``methods``: those that have fits, in the order of their folders. ``unread``: records that cannot be
    read, and why; their fits count as left."""

    methods: list[Method]
    unread: list[str]


class Watch:
    """Folders that are looked at again and again: what is finished is read once.

    :raises InputError: a folder is not there.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = separate(roots)
        self._finished: dict[Path, tuple[float, str]] = {}  # run.json -> when it was written, and its status

    def look(self) -> Progress:
        """How far all is now."""
        methods: dict[Path, Method] = {}
        unread: list[str] = []
        for folder, below, files in visited(self._roots):
            if RECORD in files:
                below.clear()
                self._add(methods, folder, unread)
            elif folder.name == FOLDER:
                for file in sorted(files):
                    _add_planned(methods, folder / file, unread)
            elif any(file.startswith(PREFIX) for file in files):
                _method(methods, folder)
        for one in methods.values():
            one.running = _running(one)
        return Progress([methods[folder] for folder in sorted(methods)], unread)

    def _add(self, methods: dict[Path, Method], folder: Path, unread: list[str]) -> None:
        within = list(itertools.takewhile(lambda part: part.startswith(_WITHIN), reversed(folder.parts)))
        above, fit = Path(*folder.parts[: -len(within) or None]), "/".join(reversed(within))
        method = _method(methods, above)
        try:
            status = self._status(folder / RECORD)
        except InputError as error:
            unread.append(str(error))
            status = ""
        {"complete": method.complete, "failed": method.failed}.get(status, method.begun).add(fit)

    def _status(self, path: Path) -> str:
        try:
            written = path.stat().st_mtime
        except FileNotFoundError:  # being replaced
            return ""
        known = self._finished.get(path)
        if known is not None and known[0] == written:
            return known[1]
        record = read_record(path.parent)
        status = record.status if record is not None else ""
        if status in FINISHED:
            self._finished[path] = written, status
        return status


def damaged(progress: Progress) -> list[str]:
    """What is wrong with the files of finished fits: each is to be what the fit wrote."""
    found = []
    for method in progress.methods:
        for fit in sorted(method.complete | method.failed):
            try:
                record = read_record(method.folder / fit)
                if record is not None:
                    read_finished(method.folder / fit, record.config_hash)
            except InputError as error:
                found.append(str(error))
    return found


def _add_planned(methods: dict[Path, Method], path: Path, unread: list[str]) -> None:
    if path.name.startswith("."):  # being written
        return
    try:
        wanted = list(planned(path))
    except InputError as error:
        unread.append(str(error))
        return
    for method, fit in wanted:
        _method(methods, path.parent.parent / method).wanted.add(fit)


def _method(methods: dict[Path, Method], folder: Path) -> Method:
    return methods.setdefault(folder, Method(folder))


def _running(method: Method) -> list[Running]:
    now = time.time()
    found = []
    for _, claim, written in read_claims(method.folder):
        fits = frozenset(claim.fits) - method.complete - method.failed
        if fits:
            found.append(Running(method.folder, claim, max(0.0, now - written), fits))
    return found
