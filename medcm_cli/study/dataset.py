"""The data of a study: which file they are in, the stand-in for those that are not public, what is known of
their truth, and reading and preparing them."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from medcm_cli.checks import as_option, number, shown
from medcm_cli.data import (
    EventTable,
    Format,
    Rule,
    describe,
    read_events,
    units_assumed,
    with_magnitudes,
    with_occasions,
)
from medcm_cli.data.describe import describe_endpoint
from medcm_cli.data.endpoints import Selector
from medcm_cli.data.missing import filled, origin_table, statistics
from medcm_cli.data.sheet import BoolArray, folded
from medcm_cli.errors import InputError
from medcm_cli.files import remove_partial, replaced
from medcm_cli.haemophilia.cohorts import made_cohort, truth_of
from medcm_cli.haemophilia.preparation import (
    DERIVED,
    RAW,
    Preparation,
    check_baseline,
    prepare,
    raw_units,
    subtract_baseline,
)
from medcm_cli.haemophilia.preparation import table as preparation_table
from medcm_cli.haemophilia.units import UNITS
from medcm_cli.haemophilia.virtual import Settings, write_study
from medcm_cli.model import Model
from medcm_cli.pk import PkModel
from medcm_cli.runs import SIGMAS, Units
from medcm_cli.study.covariates import STATISTICS, rules_of, texts_of
from medcm_cli.study.endpoints import told_by
from medcm_cli.study.identity import Config, dataset_name


def with_stand_in(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose dataset is what will be read: without a path, a cohort whose data are not public
    is a synthetic one, by name too, whose truth is known."""
    dataset = config["dataset"]
    if dataset["cohort"] is None:
        return config
    truth = truth_of(dataset["cohort"])  # says which there are, where this is none
    if dataset["path"] is not None:
        return config
    return {**config, "dataset": {**dataset, "name": dataset_name(dataset), "truth": truth}}


def dataset_path(config: Config) -> Path:
    """The event table that a configuration names; the default simulated data set, or the stand-in for a
    cohort, is made where it does not exist yet."""
    dataset = config["dataset"]
    if dataset["path"] is None and dataset["cohort"] is not None:
        return made_cohort(config["outputs"], dataset["cohort"]) / "events.csv"
    if dataset["path"] is None:
        if dataset["events"] is None:
            raise InputError("dataset.path is null; expected the event table, a .csv or .parquet file")
        folder = default_data_folder(str(config["outputs"]))
        if not folder.exists():
            remove_partial(folder.parent)
            with replaced(folder, keep=True) as partial:  # never under another process that reads it
                write_study(partial, Settings())
    else:
        folder = Path(str(dataset["path"]))
    if dataset["events"] is None or folder.is_file():
        return folder
    names = [dataset["events"]] if isinstance(dataset["events"], str) else list(map(str, dataset["events"]))
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"dataset.path={folder}: has neither {' nor '.join(names)}; `medcm simulate` writes such a folder"
    )


def default_data_folder(outputs: str) -> Path:
    """Where the default simulated data set lies."""
    return Path(outputs) / "data" / "simulated"


def true_values_of(
    dataset: Config, random_effects: tuple[str, ...], log_normal: bool = True
) -> dict[str, Any] | None:
    """The dataset's true Omega, None where the fit has other random effects or they are not ``log_normal``,
    and sigma."""
    truth = dataset["truth"]
    if truth is None:
        return None
    try:
        names = truth["random_effects"]
        omega = np.array(truth["omega"], dtype=np.float64)
        valid = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        valid = valid and omega.shape == (len(names), len(names)) and bool((omega == omega.T).all())
        valid = valid and float(np.linalg.eigvalsh(omega)[0]) > 0
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(
            f"dataset.truth is {shown(truth)}; expected null, or sigma, random_effects (their names) and "
            "omega, a positive definite matrix with a row for each of them"
        )
    sigma = truth.get("sigma")
    if not isinstance(sigma, Mapping) or set(sigma) - set(SIGMAS):
        raise InputError(
            f"dataset.truth.sigma is {shown(sigma)}; expected components of a residual error, such as "
            "additive or proportional, each above 0"
        )
    for name, value in sigma.items():
        number(f"dataset.truth.sigma.{name}", value, above=0)
    same = log_normal and tuple(names) == random_effects
    return {"omega": omega.tolist() if same else None, "sigma": sigma}


class Also(NamedTuple):
    """What other options say of a file: ``endpoints``, where several things are observed; ``group``, a column
    that tells subjects of one id apart, whose ``labels`` the table keeps; ``abscissa``, the column that
    observations depend on in place of time; ``occasions``, where something varies between them; ``values`` of
    columns that the file need not have, column -> id -> value."""

    endpoints: Config | None = None
    group: str | None = None
    abscissa: str | None = None
    occasions: Config | None = None
    values: Mapping[str, Mapping[str, float]] = {}


def format_of(
    columns: Mapping[str, str],
    dataset: Config,
    needed: Collection[str],
    patients: bool,
    until: float,
    also: Also | None = None,
) -> Format:
    """How the file is to be read. :param columns: covariate -> its column."""
    rules, also = rules_of(dataset["covariates"], needed), also or Also()
    rule = None if also.occasions is None else Rule.of(also.occasions)
    of_occasions = {"occ": rule.column} if rule is not None and rule.column is not None else {}
    return Format(
        columns={**dataset["columns"], **of_occasions},
        keep=dataset["keep"],
        dialect=dataset["dialect"],
        bolus_duration=dataset["bolus_duration"],
        predose_observations=dataset["predose_observations"],
        over_time=dataset["over_time"],
        texts=texts_of(dataset["covariates"]),
        optional=frozenset(name for name, (rule, _) in rules.items() if rule in STATISTICS),
        forward=frozenset(name for name, (rule, _) in rules.items() if rule == "forward"),
        labels=tuple(
            dict.fromkeys(by for by in (also.group, *(by for _, by in rules.values())) if by is not None)
        ),
        spare=frozenset(columns) - set(needed),
        limits={name: limits(entry) for name, entry in dataset["covariates"].items()},
        patients=patients,
        until=until,
        time_unit=Units.of(dataset).time,
        logged=dataset["logged"],
        blq=dataset["blq"],
        endpoints=[
            Selector(name, *told_by(one), one.get("over")) for name, one in (also.endpoints or {}).items()
        ],
        group=also.group,
        abscissa=also.abscissa,
        by_occasion=rule is not None and rule.by_column,
        values=also.values,
    )


def read_dataset(
    path: Path | pd.DataFrame,
    dataset: Config,
    needed: Collection[str],
    patients: bool = False,
    until: float = np.inf,
    known: Mapping[str, Any] | None = None,
    also: Also | None = None,
) -> tuple[EventTable, dict[str, Any], pa.Table | None]:
    """The events that fits see; what the file holds; and, of covariates that may be missing, what was done.

    :param needed: covariates that the model reads; others may be absent.
    :param patients: read for prediction, ``until`` so long (``Format.patients``).
    :param also: what options beside ``dataset`` say of the file.
    :param known: what a study's data held, whose subjects' values those of patients are taken from.
    :raises InputError: a fault in the file, or options of ``dataset`` that do not fit it.
    """
    columns, also = (
        {name: str(entry["column"]) for name, entry in dataset["covariates"].items()},
        also or Also(),
    )
    endpoints, group = also.endpoints, also.group
    how, units = format_of(columns, dataset, needed, patients, until, also), Units.of(dataset)
    if dataset["preparation"] is not None:
        if endpoints is not None:
            raise InputError("endpoints: are not there for a dataset whose covariates have a preparation")
        return _prepared(path, dataset, columns, how, needed, also.occasions)
    events = _parted(with_magnitudes(read_events(path, columns, how), units), also.occasions, patients)
    of_covariates = {name: str(entry["unit"]) for name, entry in dataset["covariates"].items()}
    ours = dataset["cohort"] is not None or dataset["truth"] is not None
    if not patients and not ours and dataset["units"] == UNITS:
        events = replace(events, notes=(*events.notes, units_assumed(events.source, units)))
    held = _held(events, of_covariates, endpoints, units.level)
    rules = rules_of(dataset["covariates"], needed)
    if not rules:
        return events, held, None
    taken = {name: rule for name, rule in rules.items() if rule[0] in STATISTICS}
    found = statistics(events, taken) if known is None else known.get("filled", {})
    whole, origins = filled(events, found, of_covariates)
    origins |= {name: np.full(len(events.ids), "measured") for name in set(rules) - set(origins)}
    table = origin_table(whole, origins, of_covariates)
    labels = {name: whole.labels[name] for name in (group,) if name is not None}
    return replace(whole, labels=labels), held | {"filled": found, "origins": _counted(table)}, table


def _parted(events: EventTable, occasions: Config | None, patients: bool) -> EventTable:
    """With the occasions of the option, if there is one."""
    return events if occasions is None else with_occasions(events, Rule.of(occasions), patients)


def _held(
    events: EventTable, units: Mapping[str, str], endpoints: Config | None = None, level: str = ""
) -> dict[str, Any]:
    """What a table holds, covariates and endpoints with their units. :param level: that of levels."""
    held = describe(events)
    if endpoints is not None:
        held["endpoints"] = {
            name: {"unit": one.get("unit") or level, **describe_endpoint(events, place)}
            for place, (name, one) in enumerate(endpoints.items())
        }
    for name, covariate in held["covariates"].items():
        covariate["unit"] = units.get(name) or "-"
    return held


def _counted(preparation: pa.Table) -> dict[str, dict[str, int]]:
    """Covariate -> how its values came about -> of how many subjects."""
    names = [name for name in preparation.column_names if name.endswith("_origin")]
    return {name.removesuffix("_origin"): dict(Counter(preparation[name].to_pylist())) for name in names}


def _prepared(
    path: Path | pd.DataFrame,
    dataset: Config,
    columns: Mapping[str, str],
    how: Format,
    needed: Collection[str],
    occasions: Config | None,
) -> tuple[EventTable, dict[str, Any], pa.Table | None]:
    """What ``read_dataset`` gives of covariates that are prepared."""
    units = Units.of(dataset)
    steps = Preparation.build(dataset["preparation"])
    given = dict(steps.columns) | ({"baseline": steps.baseline} if steps.baseline else {})
    others = {column: column for column in columns.values() if column not in (*RAW, *DERIVED)}
    spare = {column for name, column in columns.items() if name in how.spare and column in others}
    options: dict[str, tuple[str, ...]] = {
        column: ("covariates", name, "column") for name, column in columns.items()
    }
    options |= {name: ("preparation", "columns", name) for name in steps.columns}
    options |= {"baseline": ("preparation", "baseline")}
    as_read = replace(how, optional=frozenset(given), spare=frozenset(spare), limits={}, options=options)
    raw = with_magnitudes(read_events(path, {**others, **given}, as_read), units)
    if raw.regimes is not None and raw.regimes.covariates:
        name = min(raw.regimes.covariates)
        raise InputError(f"dataset.over_time.{name}=record: a preparation has one value of each subject")
    raw = _parted(raw, occasions, how.patients)
    prepared = prepare({name: raw.covariates[name] for name in steps.columns}, steps, raw.ids, raw.source)
    wanted = [column for name, column in columns.items() if column not in others and name in needed]
    found = {**raw.covariates, **prepared.need(wanted, raw.ids, raw.source)}
    dv, baseline = raw.dv, None
    if steps.baseline:
        baseline = check_baseline(raw.covariates["baseline"], steps.baseline, raw.ids, raw.source)
        dv = subtract_baseline(dv, raw.subject, baseline)
    events = replace(
        raw,
        dv=dv,
        covariates={name: found[column] for name, column in columns.items() if column in found},
    )
    table = preparation_table(raw.ids, prepared, baseline, units.level)
    of_columns = {str(entry["column"]): str(entry["unit"]) for entry in dataset["covariates"].values()}
    held = _held(raw, of_columns | raw_units(steps, units.level))
    return events, held | {"origins": _counted(table)}, table


def limits(covariate: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the greatest value that a covariate's description lets it have: one that is measured
    relative to a reference above 0 is not negative, and none is a million times its scale."""
    highest = 1e6 * float(covariate["scale"])
    return 0.0 if covariate["reference"] > 0 else -highest, highest


def check_observations(events: EventTable, model: Model, dataset: Config) -> None:
    """:raises InputError: an observation of another compartment than the model's, or one that has no density
    by the residual error: where the prediction is zero, or the level where it has to be above."""
    _check_compartments(events, model.pk, dataset)
    _check_categories(events, model.network.categories)
    if dataset["logged"] and not model.error.logged:
        raise InputError("dataset.logged=true: the levels are logarithms; expected error=log_normal")
    for place, error in enumerate(model.error.each):
        own = ~events.is_dose & (events.endpoint == place)
        if error.needs_positive:
            _check_positive(events, own)
        if not error.allows_zero and model.pk.silent(place):
            _check_predose(events, model.pk, own)


def _check_compartments(events: EventTable, pk: PkModel, dataset: Config) -> None:
    """Several are refused; another one than the model's is where ``dataset.keep`` has not chosen it."""
    seen = np.unique(events.compartment[~events.is_dose & (events.compartment >= 0)])
    others = seen[seen != pk.observes]
    name = folded(dataset["columns"].get("cmt") or "cmt")
    chosen = len(seen) == 1 and any(folded(column) == name for column in dataset["keep"])
    if pk.observes is None or not len(others) or chosen:
        return
    row = int(np.argmax(~events.is_dose & (events.compartment == others[0])))
    who, number = events.ids[events.subject[row]], others[0] + 1
    raise InputError(
        f"{events.source}: subject {who!r} has an observation of compartment {number} (CMT) at "
        f"{events.time[row]:g} {events.time_unit}, and the model's is {pk.observes + 1}; leave such rows out "
        f"(dataset.keep), or say {as_option('dataset.columns', cmt=None)} where CMT says nothing"
    )


def _check_categories(events: EventTable, categories: Mapping[str, tuple[float, ...]]) -> None:
    """A mean of categories is none, and would have the reference's effect without a word."""
    subject = events.regimes.subject if events.regimes else None
    changing = events.regimes.covariates if events.regimes else {}
    for name, known in categories.items():
        values = changing[name] if name in changing else events.covariates[name]
        wrong = ~np.isclose(values[:, None], known, rtol=0, atol=1e-6).any(axis=1)
        if wrong.any():
            row = int(np.argmax(wrong))
            who = events.ids[subject[row] if subject is not None and name in changing else row]
            raise InputError(
                f"{events.source}: {name} of subject {who!r} is {values[row]:.3g}, which is no category; "
                f"expected {' or '.join(f'{number:g}' for number in known)}; what is missing may be "
                f"dataset.covariates.{name}.missing=mode, and what changes dataset.over_time record or first"
            )


def _check_positive(events: EventTable, seen: BoolArray) -> None:
    wrong = seen & (events.dv <= 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{events.source}: subject {events.ids[events.subject[row]]!r} has a level of {events.dv[row]:g} "
            f"at {events.time[row]:g} {events.time_unit}, which has no logarithm; say that it lies below a "
            "limit (CENS), leave it out, or choose another error than log_normal; where DV is logarithms, "
            "say dataset.logged=true"
        )


def _check_predose(events: EventTable, pk: PkModel, observed: BoolArray) -> None:
    # Of each segment: a reset empties the compartments too.
    part = events.subject * (events.segment.max() + 1) + events.segment
    first_dose = np.full(part.max() + 1, np.inf)
    # At a steady state doses have been given before.
    since = np.where(np.isfinite(events.interval), np.nextafter(events.clock, -np.inf), events.clock)
    np.minimum.at(first_dose, part[events.is_dose], since[events.is_dose])
    at_first = events.clock == first_dose[part]
    # A dose that is there at once, where it is observed, is seen by what comes after it at its very time.
    into = np.where(events.compartment < 0, pk.dosed, events.compartment)
    seen = np.ones_like(into, dtype=bool) if pk.observes is None else into == pk.observes
    at_once = events.is_dose & at_first & (events.duration == 0) & seen
    at_once &= ~np.isin(into + 1, list(pk.lag))
    row, begins = np.arange(len(part)), np.full(part.max() + 1, len(part))
    np.minimum.at(begins, part[at_once], row[at_once])
    early = (events.clock < first_dose[part]) | (at_first & (row < begins[part]))
    early &= observed
    if early.any():
        subject = events.ids[events.subject[int(np.argmax(early))]]
        raise InputError(
            f"{events.source}: subject {subject!r} has an observation no later than its first dose, where "
            "the prediction is zero, and the residual error has no density there; choose one with an "
            "additive part, such as error=additive or combined"
        )
