"""Fits that do not belong together, as when the results of several machines are put into one folder. Loads no
torch."""

from collections.abc import Iterable, Iterator

from medcm_cli import runs
from medcm_cli.runs.walk import DAMAGED, Fault, Fit
from medcm_cli.study.identity import difference


def unmixed(found: Iterable[Fit | Fault]) -> Iterator[Fit | Fault]:
    """Each fit of a walk once, finished where it is finished anywhere; in place of others, why they do not
    count. One has another configuration or other data than the first fit that is alike in name.

    Unfinished fits come last.
    """
    methods: dict[tuple[object, ...], Fit] = {}
    seen: dict[runs.Address, Fit] = {}
    unfinished: list[Fit] = []
    for one in found:
        if isinstance(one, Fault):
            yield one
        elif one.record.status not in runs.FINISHED:
            unfinished.append(one)
        else:
            yield _judged(one, methods, seen)
    for one in unfinished:
        if one.record.address not in seen:
            seen[one.record.address] = one
            yield one


def _judged(fit: Fit, methods: dict[tuple[object, ...], Fit], seen: dict[runs.Address, Fit]) -> Fit | Fault:
    record = fit.record
    first = methods.setdefault(record.address.alike, fit)
    other = first.record
    try:
        why = "" if record.config == other.config else difference(other.config, record.config)
    except DAMAGED:  # who reads on says so
        return fit
    if not why and record.data.get("fingerprint") != other.data.get("fingerprint"):
        why = "its data are others"
    if why:
        return Fault(fit.folder, f"{fit.folder}: is not of the same study as {first.folder} ({why})")
    twin = seen.setdefault(record.address, fit)
    if twin is not fit:
        return Fault(fit.folder, f"{fit.folder}: is counted once, in {twin.folder}")
    return fit
