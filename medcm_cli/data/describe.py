"""What an event table holds: the characteristics of a cohort (the form of the paper's Table 2)."""

from typing import Any

import numpy as np

from medcm_cli.data.events import EventTable
from medcm_cli.data.sheet import FloatArray
from medcm_cli.quantities import hours


def describe(table: EventTable) -> dict[str, Any]:
    """Counts and [median, least, most] over subjects, ready for JSON.

    ``amount_given`` and ``follow_up``, from the first dose to the last observation, per subject, in the
    data's units; resets between them do not count as time. Of every covariate: the share of subjects in
    whom it is missing, and [median, least, most] of the others, of one that changes over its regimes.
    """
    n = len(table.ids)
    observation = ~table.is_dose
    given = table.given
    known = np.isfinite(table.duration) & (table.duration > 0)
    first, last = np.full(n, np.inf), np.full(n, -np.inf)
    np.minimum.at(first, table.subject[given], table.time[given])
    np.maximum.at(last, table.subject[observation], table.time[observation])
    varying = {} if table.regimes is None else table.regimes.covariates
    return {
        "subjects": n,
        "doses": int(given.sum()),
        "doses_per_subject": _spread(_count(table, given)),
        "infusions_over_an_hour": int((given & known & (table.duration * hours(table.time_unit) > 1)).sum()),
        "modelled_durations": int((given & np.isnan(table.duration)).sum()),
        "steady_states": int((table.is_dose & np.isfinite(table.interval)).sum()),
        "amount_given": _spread(np.bincount(table.subject[given], table.amount[given], n).astype(np.float64)),
        "resets": len(table.reset_subject),
        "occasions": int(table.occasion.max(initial=1)),
        "occasions_per_subject": _spread(_occasions(table)),
        "observations": int(observation.sum()),
        "observations_per_subject": _spread(_count(table, observation)),
        "below_limit": int((table.censored & ~table.above).sum()),
        "above_limit": int(table.above.sum()),
        "level": _spread(table.dv[observation & ~table.censored & (table.endpoint == 0)]),
        "follow_up": _spread((last - first)[np.isfinite(first)]),
        "covariates": {
            name: {"missing": float(np.isnan(values).mean()), "values": _spread(values[~np.isnan(values)])}
            for name, values in {**table.covariates, **varying}.items()
        },
        "changing": sorted(varying),
    }


def _occasions(table: EventTable) -> FloatArray:
    """How many each subject has: rises of a number that never falls."""
    rises = np.r_[True, (np.diff(table.subject) != 0) | (np.diff(table.occasion) != 0)]
    return _count(table, rises[: len(table.subject)])


def describe_endpoint(table: EventTable, number: int) -> dict[str, Any]:
    """Of one of several endpoints, from 0, how many ``observations`` there are, and their ``values``."""
    own = ~table.is_dose & (table.endpoint == number)
    return {"observations": int(own.sum()), "values": _spread(table.dv[own & ~table.censored])}


def _count(table: EventTable, rows: np.ndarray) -> FloatArray:
    return np.bincount(table.subject[rows], minlength=len(table.ids)).astype(np.float64)


def _spread(values: FloatArray) -> list[float] | None:
    """[median, least, most], None of nothing."""
    if not len(values):
        return None
    return [float(np.median(values)), float(values.min()), float(values.max())]
