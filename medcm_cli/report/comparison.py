"""Methods compared: the mean of a measure over independent fits with its interval, and how far the others lie
from the best, in the same folds."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit  # scipy.stats takes half a second to load

from medcm_cli.runs import METHOD, Record, Units
from medcm_cli.runs.description import described
from medcm_cli.runs.sweeps import by_method, name_of

FloatArray = npt.NDArray[np.float64]
LEVEL = 0.95
_FIT = ["fold", "replicate"]


@dataclass(frozen=True)
class Measure:
    """What methods are compared by: a column of ``Summary.fits``, of which less is better.

    ``ratio``: by ratios and geometric means, as what spreads over powers of ten.
    """

    name: str
    title: str
    unit: str
    ratio: bool = False


@dataclass(frozen=True)
class Mean:
    """Of a method's ``fits``: the mean over ``units`` of what ``over`` names, each the mean of its own fits,
    with the ends of its interval, which are NaN where there is one unit."""

    label: str
    fits: int
    units: int
    over: str
    value: float
    low: float
    high: float
    median: float

    @property
    def base(self) -> str:
        """What the interval is over, as in 5 folds."""
        return "1 fit" if self.fits == 1 else counted(self.units, self.over)


@dataclass(frozen=True)
class Difference:
    """A method less the best one, or divided by it, over ``units`` that both have; NaN where there is none,
    and the ends where there is one."""

    units: int
    value: float
    low: float
    high: float
    none: float  # what is no difference

    @property
    def distinguishable(self) -> bool | None:
        """Whether the interval leaves out no difference; None where there is none."""
        return None if math.isnan(self.low) else not self.low <= self.none <= self.high


@dataclass(frozen=True)
class Comparison:
    """Methods by one measure, in the order in which they are shown. ``differences``: of all but the best, by
    label. ``pairs``: of methods, for all of which together the intervals of differences hold."""

    measure: Measure
    means: tuple[Mean, ...]
    best: Mean
    differences: Mapping[str, Difference]
    pairs: int
    ratio: bool


def counted(number: int, of: str) -> str:
    """1 fold, 2 folds."""
    return f"{number} {of if number == 1 else of + ('es' if of.endswith('s') else 's')}"


# -- what can be compared --------------------------------------------------------------------------


def comparable(fits: pd.DataFrame, records: Sequence[Record]) -> list[pd.DataFrame]:
    """The complete fits of one study and data set with the ``label`` of their method, in the order in which
    methods are shown; apart those of other data or folds, since a fold of one is no fold of the other.

    :param fits: their rows of ``Summary.fits``. :param records: their records.
    """
    labels, grounds = {}, dict[tuple[object, ...], set[str]]()
    for label, group in by_method(records).items():
        for record in group:
            labels[record.address.method] = label
            place = (record.address.method, record.address.fold, record.address.replicate)
            grounds.setdefault(place, set()).add(_ground(record))
    done = fits[fits["status"] == "complete"]
    methods = list(zip(*(done[name] for name in METHOD), strict=True))
    places = list(zip(methods, done["fold"], done["replicate"], strict=True))
    known = [place in grounds for place in places]  # not of a record that is damaged
    done = done[known]
    order = {label: place for place, label in enumerate(dict.fromkeys(labels.values()))}
    own = pd.Series(
        [labels[method] for method, one in zip(methods, known, strict=True) if one], done.index, dtype=object
    )
    ground = [" ".join(sorted(grounds[place])) for place, one in zip(places, known, strict=True) if one]
    done = done.assign(label=own, ground=ground)
    done = done.iloc[np.argsort(own.map(order).to_numpy(dtype=int), kind="stable")]
    return [group for _, group in done.groupby("ground", sort=False)]


def _ground(record: Record) -> str:
    """What must be the same for a fold to hold the same subjects, and levels the same unit."""
    dataset = record.config["dataset"]
    chosen = [dataset.get(name) or {} for name in ("columns", "keep")]
    units = Units.of(dataset)
    split = record.config.get("split")
    return json.dumps([record.data.get("fingerprint"), split, chosen, units.reported, units.scale])


def measures(unit: str, truth: Mapping[str, object] | None, endpoints: Mapping[str, str]) -> list[Measure]:
    """What methods of any objective can be compared by.

    :param unit: of levels in results. :param endpoints: estimate of one of several -> its unit.
    """
    words = "RMSE of typical predictions for test subjects"
    each = {n.removeprefix("rmse_"): u for n, u in endpoints.items() if n.startswith("rmse_")}
    found = [
        *(Measure(f"rmse_{name}", f"{words}, {name}", own) for name, own in each.items()),
        *([] if each else [Measure("rmse", words, unit)]),
        Measure("kl", "KL divergence of Omega from the truth", "nats", ratio=True),
        Measure("omega_mae", "absolute error of omega", "log scale"),
    ]
    sigma = (truth or {}).get("sigma")
    if isinstance(sigma, Mapping) and len(sigma) == 1:  # a mean over two would have two units
        error = unit if "additive" in sigma else "-"
        found.append(Measure("sigma_mae", "absolute error of sigma", error))
    return found


def of_one_objective(records: Sequence[Record]) -> list[tuple[Measure, list[str]]]:
    """Where an objective was minimised in several ways, its value, and the labels of the methods: with the
    same options of the objective, so that it is the same function of the predictions."""
    groups: dict[str, list[tuple[str, Record]]] = {}
    for label, (first, *_) in by_method(records).items():
        options = {
            name: value for name, value in first.config["objective"].items() if name != "learning_rate"
        }
        key = json.dumps([first.address.objective, options], sort_keys=True)
        groups.setdefault(key, []).append((label, first))
    result = []
    for group in groups.values():
        if len(group) > 1:
            first = group[0][1]
            said = described(first)
            unit = said.unit_in(Units.of(first.config["dataset"]).level) if said.power else said.unit
            name = f"{said.value} of {name_of(first.address.objective)}"
            result.append((Measure("objective_value", name, unit), [label for label, _ in group]))
    return result


# -- intervals -------------------------------------------------------------------------------------


def interval(values: FloatArray, level: float = LEVEL) -> tuple[float, float, float]:
    """The mean of n independent values and the ends of its t-interval, which are NaN of a single one."""
    mean = float(values.mean()) if len(values) else math.nan
    if len(values) < 2:
        return mean, math.nan, math.nan
    quantile = stdtrit(len(values) - 1, (1 + level) / 2)
    half = float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def over(fits: pd.DataFrame) -> tuple[str, str]:
    """The column by which fits are independent, and its name: shuffles of a nested split, or folds; where all
    are of one fold, replicates."""
    if fits["outer"].notna().all():
        return "outer", "outer shuffle"
    several = len(fits["fold"].unique()) > 1
    return ("fold", "fold") if several else ("replicate", "replicate")


def compare(fits: pd.DataFrame, measure: Measure) -> Comparison | None:
    """The methods of ``fits`` (one of ``comparable``) by a measure; None where no fit has it."""
    if measure.name not in fits or fits[measure.name].isna().all():
        return None
    held = fits[fits[measure.name].notna()]
    ratio = measure.ratio and bool((held[measure.name] > 0).all())
    values = held[measure.name].astype(float)
    held = held.assign(value=np.log(values) if ratio else values)
    groups = dict(iter(held.groupby("label", sort=False)))
    means = {str(label): _mean(str(label), group, ratio) for label, group in groups.items()}
    best = min(means.values(), key=lambda mean: mean.value)
    pairs = len(means) * (len(means) - 1) // 2
    differences = {
        label: _difference(groups[label], groups[best.label], 1 - (1 - LEVEL) / pairs, ratio)
        for label in means
        if label != best.label
    }
    return Comparison(measure, tuple(means.values()), best, differences, pairs, ratio)


def _mean(label: str, fits: pd.DataFrame, ratio: bool) -> Mean:
    column, name = over(fits)
    units = fits.groupby(column)["value"].mean().to_numpy(dtype=np.float64)
    ends = interval(units)
    value, low, high = np.exp(ends) if ratio else ends
    median = float(fits["value"].median())
    return Mean(label, len(fits), len(units), name, value, low, high, math.exp(median) if ratio else median)


def _difference(fits: pd.DataFrame, best: pd.DataFrame, level: float, ratio: bool) -> Difference:
    columns = ["outer", *_FIT]
    both = fits[[*columns, "value"]].merge(best[[*_FIT, "value"]], on=_FIT, suffixes=("", "_best"))
    column, _ = over(both)
    within = (both["value"] - both["value_best"]).groupby(both[column]).mean().to_numpy(dtype=np.float64)
    ends = interval(within, level)
    value, low, high = np.exp(ends) if ratio else ends
    return Difference(len(within), value, low, high, 1.0 if ratio else 0.0)
