"""Fits put together: those that are alike into a method, the methods of a study and data set into a sweep."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from medcm_cli.errors import InputError
from medcm_cli.runs.description import Description, described
from medcm_cli.runs.folder import FINISHED, Record
from medcm_cli.runs.units import Units
from medcm_cli.runs.walk import DAMAGED, Fault, Fit, damage, walk

T = TypeVar("T")
_GROUPS = ("dataset", "objective")  # a configuration without them is damaged


@dataclass(frozen=True)
class Method:
    """Fits that are alike, of the same ``Address.alike``. ``label`` tells it from the others of its sweep."""

    label: str
    objective: str
    fits: tuple[Fit, ...]

    @property
    def complete(self) -> list[Fit]:
        """Its fits that did not fail."""
        return [fit for fit in self.fits if fit.record.status == "complete"]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of its fits."""
        return self.fits[0].record.config

    @property
    def described(self) -> Description:
        """What its objective says of itself."""
        return described(self.fits[0].record)

    @property
    def mixed(self) -> bool:
        """Whether it estimates random effects."""
        return any("omega_1" in fit.history for fit in self.fits)


@dataclass(frozen=True)
class Sweep:
    """The methods of one study and data set. ``unfinished``: how many fits have neither finished nor
    failed."""

    study: str
    dataset: str
    methods: tuple[Method, ...]
    unfinished: int

    @property
    def described(self) -> Mapping[str, Any]:
        """The data set's part of the configuration."""
        described: Mapping[str, Any] = self.methods[0].config["dataset"]
        return described

    @property
    def units(self) -> Units:
        """In which units its concentrations are."""
        return Units.of_config(self.methods[0].config)

    @property
    def random_effects(self) -> list[str]:
        """Of the first method that has any; they are numbered in the results."""
        return list(
            map(str, next((m for m in self.methods if m.mixed), self.methods[0]).config["random_effects"])
        )

    @property
    def effect_scales(self) -> dict[str, str]:
        """Parameter -> what its random effect is on, as in log scale or mg/L."""
        method = next((m for m in self.methods if m.mixed), self.methods[0])
        return method.fits[0].effect_scales

    @property
    def occasion_scales(self) -> dict[str, str]:
        """The same of what varies between the occasions of a subject, of the first method that has any."""
        for method in self.methods:
            found = method.fits[0].occasion_scales if method.mixed else {}
            if found:
                return found
        return {}

    @property
    def truth(self) -> Mapping[str, Any] | None:
        """``omega``, where the fits have its random effects, and ``sigma``."""
        return self.methods[0].fits[0].record.truth


@dataclass(frozen=True)
class Found:
    """``missing``: what could not be read or is not there, one line each."""

    sweeps: list[Sweep]
    missing: list[str]


def collect(roots: Sequence[Path], progress: Callable[[int], None] | None = None) -> Found:
    """The sweeps of all fits below ``roots``, with their histories. A folder without any fit is no error.

    :param progress: told the number of folders read so far.
    :raises InputError: a root does not exist.
    """
    return gather(walk(roots, progress), roots)


def gather(found: Iterable[Fit | Fault], roots: Sequence[Path]) -> Found:
    """Of fits that a walk below ``roots`` found; see ``collect``."""
    missing: list[str] = []
    groups: dict[tuple[str, str], list[Fit]] = {}
    unfinished: dict[tuple[str, str], int] = {}
    nothing = True
    for one in found:
        nothing = False
        if isinstance(one, Fault):
            missing.append(one.reason)
            continue
        sweep = one.record.address.sweep
        if one.record.status not in FINISHED:
            unfinished[sweep] = unfinished.get(sweep, 0) + 1
            continue
        try:
            _check(one)
        except DAMAGED as error:
            missing.append(damage(one.folder, error))
        else:
            groups.setdefault(sweep, []).append(one)
    if nothing:
        missing.append(f"{', '.join(map(str, roots))}: no run folder below it; `medcm fit` writes them")
    for (study, dataset), number in sorted(unfinished.items()):
        if (study, dataset) not in groups:
            missing.append(f"{study}, {dataset}: none of {number} fits has finished")
    sweeps = [
        Sweep(study, dataset, _methods(group), unfinished.get((study, dataset), 0))
        for (study, dataset), group in sorted(groups.items())
    ]
    return Found(sweeps, missing)


def _check(fit: Fit) -> None:
    """Read what a figure needs of a fit; see ``DAMAGED`` for what it may raise."""
    str(fit.record.config["objective"]["_target_"])
    final_objective(fit)


def _methods(fits: Sequence[Fit]) -> tuple[Method, ...]:
    groups = _by_method(fits, lambda fit: fit.record)
    return tuple(
        Method(
            label,
            group[0].record.address.objective,
            tuple(sorted(group, key=lambda fit: (fit.record.address.fold, fit.record.address.replicate))),
        )
        for label, group in groups.items()
    )


# -- records that belong together ------------------------------------------------------------------


def records_of(found: Iterable[Fit | Fault]) -> list[Record]:
    """The records of fits, without those that are damaged."""
    records = [one.record for one in found if isinstance(one, Fit)]
    return [r for r in records if all(isinstance(r.config.get(group), Mapping) for group in _GROUPS)]


def by_sweep(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """(study, data set) -> its fits."""
    result: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        result.setdefault(record.address.sweep, []).append(record)
    return dict(sorted(result.items()))


def by_method(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Label -> its fits, of one study and data set, in the order in which methods are shown."""
    return _by_method(records, lambda record: record)


def _by_method(of: Iterable[T], record: Callable[[T], Record]) -> dict[str, list[T]]:
    groups: dict[tuple[str, str, float, str], list[T]] = {}
    for one in of:
        groups.setdefault(record(one).address.method, []).append(one)
    ranks = {method: described(record(group[0])).rank for method, group in groups.items()}
    return {label: groups[method] for method, label in labelled(ranks).items()}


def finished(roots: Sequence[Path]) -> list[tuple[Path, Record]]:
    """The complete fits below folders.

    :raises InputError: a folder that is not there, or none in which a fit is complete.
    """
    return complete(walk(roots), roots)


def complete(found: Iterable[Fit | Fault], roots: Sequence[Path]) -> list[tuple[Path, Record]]:
    """Of fits that a walk below ``roots`` found; see ``finished``. :raises InputError: one cannot be read."""
    result = []
    for one in found:
        if isinstance(one, Fault):
            raise InputError(one.reason)
        if one.record.status == "complete":
            result.append((one.folder, one.record))
    if not result:
        raise InputError(f"{', '.join(map(str, roots))}: no complete fit here; `medcm fit` makes them")
    return result


def grouped(fits: Sequence[tuple[Path, Record]]) -> list[list[tuple[Path, Record]]]:
    """Fits of one configuration and data set, together."""
    groups: dict[str, list[tuple[Path, Record]]] = {}
    for folder, record in fits:
        key = json.dumps([record.address.alike, record.config, record.data], sort_keys=True)
        groups.setdefault(key, []).append((folder, record))
    return list(groups.values())


def name_of(objective: str) -> str:
    """vi -> VI, foce_implicit -> FOCE implicit."""
    first, *rest = objective.split("_")
    return " ".join([first.upper(), *rest])


def labelled(
    ranks: Mapping[tuple[str, str, float, str], int | None],
) -> dict[tuple[str, str, float, str], str]:
    """Methods (``Address.method``), in the order in which they are shown -> labels, which tell those of one
    objective apart.

    :param ranks: of the methods' objectives (``Description``).
    """

    def place(method: tuple[str, str, float, str]) -> tuple[Any, ...]:
        rank = ranks[method]
        return (math.inf if rank is None else rank, *map(str, method))

    ranked = sorted(ranks, key=place)
    result = {}
    for key in ranked:
        alike = [other for other in ranked if other[0] == key[0]]
        parts = [name_of(key[0])]
        if len({other[1] for other in alike}) > 1:
            parts.append(str(key[1]))
        if len({other[2] for other in alike}) > 1:
            parts.append(f"lr {key[2]:g}")
        if len({other[3] for other in alike}) > 1 and key[3] != "default":
            parts.append(str(key[3]))
        result[key] = ", ".join(parts)
    return result


def final_objective(fit: Fit) -> float:
    """The mean of a fit's objective value over its last checkpoints, NaN where it has none."""
    return fit.estimates()["objective_value"] if len(fit.history) else float("nan")


def typical_fit(method: Method, fold: int | None = None, replicate: int | None = None) -> Fit | None:
    """The complete fit whose final objective value is the median (the lower of two), among those of a fold or
    replicate where one is given; None where there is none."""
    ranked = [
        fit
        for fit in _ranked(method)
        if fold in (None, fit.record.address.fold) and replicate in (None, fit.record.address.replicate)
    ]
    return ranked[(len(ranked) - 1) // 2] if ranked else None


def common_fold(methods: Sequence[Method], replicate: int | None = None) -> int | None:
    """The fold whose fits stand for their methods, so that all show the same subjects: of those that most
    methods have a complete fit of, where fits lie closest to the middle of each method's, by their final
    objective values; None where there is no fit.

    :param replicate: look at the fits of this one only.
    """
    off: dict[int, list[float]] = {}
    for method in methods:
        ranked = _ranked(method)
        nearest: dict[int, float] = {}
        for place, fit in enumerate(ranked):
            if replicate in (None, fit.record.address.replicate):
                fold, distance = fit.record.address.fold, abs(place - (len(ranked) - 1) // 2) / len(ranked)
                nearest[fold] = min(distance, nearest.get(fold, math.inf))
        for fold, distance in nearest.items():
            off.setdefault(fold, []).append(distance)
    return min(off, key=lambda fold: (-len(off[fold]), sum(off[fold]), fold), default=None)


def _ranked(method: Method) -> list[Fit]:
    """Its complete fits, by their final objective values."""
    finals = [(final_objective(fit), fit) for fit in method.complete]
    return [fit for _, fit in sorted(filter(lambda one: np.isfinite(one[0]), finals), key=lambda one: one[0])]
