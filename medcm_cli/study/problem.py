"""What is to be estimated, before anything is said of how: data and folds, truth and model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from medcm_cli import runs
from medcm_cli.checks import as_option
from medcm_cli.data import EventTable, Fold, Population, apparent_volume
from medcm_cli.data.sheet import IntArray
from medcm_cli.errors import InputError
from medcm_cli.model import (
    CovariateNetwork,
    ErrorModel,
    Model,
    Network,
    RandomEffects,
    Rescaled,
    WithKnown,
)
from medcm_cli.model.coefficients import Coefficient
from medcm_cli.model.distributions import Distribution, bounds_of, distributions, in_odds
from medcm_cli.model.random_effects import PI
from medcm_cli.model.rows import read_initial
from medcm_cli.numerics.devices import CPU
from medcm_cli.numerics.streams import Stream
from medcm_cli.pk import PkModel, check_schedule, with_given
from medcm_cli.pk.given import Given
from medcm_cli.study.axes import folds_of
from medcm_cli.study.dataset import (
    Also,
    check_observations,
    dataset_path,
    read_dataset,
    true_values_of,
    with_stand_in,
)
from medcm_cli.study.identity import KNOWN, KNOWN_NETWORK, STARTS, Config
from medcm_cli.study.observed import error_of, fixing, observing
from medcm_cli.study.occasions import structure_of
from medcm_cli.study.options import PROBLEM, complete_problem, fixed, made, with_method

Fit = tuple[int, int]
"""(fold, replicate)"""

_FIRST_SD = 0.1  # of the error's size, where an additive sigma begins
_FAR = 10.0  # times off; the haemophilia data sets begin 3 to 5 times off


@dataclass(frozen=True)
class Problem:
    """A model and the data that it is to describe.

    ``config``: its options, complete; ``events`` as read, with covariates prepared; ``everyone``: the same as
    padded tensors, of all N subjects and one fit, in ``dtype``; ``data``: what a run's record says of the
    file; ``preparation``: of prepared covariates, how each value came about; ``folds``: number -> subjects;
    ``truth``: the known Omega (None where the model has other random effects) and sigma, None where nothing
    is known.
    """

    config: Config
    events: EventTable
    everyone: Population
    data: dict[str, Any]
    preparation: pa.Table | None
    folds: dict[int, Fold]
    truth: dict[str, Any] | None
    model: Model
    dtype: torch.dtype

    @classmethod
    def build(cls, config: Config) -> "Problem":
        """From the options of a problem; others may stand beside them.

        :raises InputError: bad data, or options that are unknown or do not fit together.
        """
        own = {key: config[key] for key in (*PROBLEM, STARTS, KNOWN, KNOWN_NETWORK) if key in config}
        config = with_stand_in(complete_problem(own))
        dataset, dtype = config["dataset"], getattr(torch, config["dtype"])
        truth = true_values_of(dataset, tuple(config["random_effects"]), not config["distributions"])
        path = dataset_path(config)
        model = model_of(config)
        if isinstance(model.pk, Given):
            begun = model.init([Stream(0, 1, 1)], torch.float64)
            model.pk.check_beginning(model.network.values_of(begun))
        split, occasions = config["split"], config["occasions"]
        also = Also(
            config["endpoints"], split.get("column"), model.pk.abscissa, occasions, config.get(KNOWN) or {}
        )
        events, characteristics, preparation = read_dataset(path, dataset, model.network.inputs, also=also)
        folds = _folds(config, events, path.parent)
        check_observations(events, model, dataset)
        events = replace(events, notes=(*events.notes, *far_to_go(events, model, config), *model.pk.notes))
        everyone = Population.from_events(events, dtype, not model.pk.needs_double)
        check_schedule(model.pk, everyone.schedule)
        data = {
            "source": str(path),
            "fingerprint": runs.fingerprint([path]),
            "subjects": len(events.ids),
            "characteristics": characteristics,
        }
        return cls(config, events, everyone, data, preparation, folds, truth, model, dtype)

    def populations(self, fits: Sequence[Fit]) -> tuple[Population, Population]:
        """Training and test subjects of a batch of B fits."""
        train_rows = [self.folds[fold].train for fold, _ in fits]
        test_rows = [self.folds[fold].test for fold, _ in fits]
        return self.everyone.select(train_rows), self.everyone.select(test_rows)

    def double(self, rows: Sequence[IntArray]) -> Population:
        """The subjects of each of B fits in double precision."""
        if self.dtype == torch.float64:
            return self.everyone.select(rows)
        with CPU:  # where tables are, whatever is trained elsewhere
            everyone = Population.from_events(self.events, torch.float64, not self.model.pk.needs_double)
        return everyone.select(rows)


def far_to_go(events: EventTable, model: Model, config: Config) -> tuple[str, ...]:
    """Lines where a fit begins so far from the data that it may not get there."""
    return (
        *_far_volume(events, model, config),
        *_far_error(events, model, runs.Units.of_config(config)),
    )


def _far_error(events: EventTable, model: Model, units: runs.Units) -> tuple[str, ...]:
    """Where the sd of an additive error begins far above the levels, or is next to nothing beside them."""
    notes = []
    for number, error in enumerate(model.error.each):
        seen = events.dv[~events.is_dose & ~events.censored & (events.dv > 0) & (events.endpoint == number)]
        size = getattr(error, "size", None)
        if size is None or not len(seen) or "additive" not in error.free:
            continue
        level, begins, unit = float(np.median(seen)), _FIRST_SD * size, units.endpoint(number).level
        if begins < _FAR * level and begins * _FAR**3 > level:
            continue
        rounded = float(f"{level:.2g}")
        name = units.endpoints[number][0] if units.endpoints else ""
        better = f"endpoints.{name}.size={rounded:g}" if name else f"+error.size={rounded:g}"
        of, is_of = (f"values of {name}", f"error of {name}") if name else ("levels", "error")
        words = f"{of} are about {rounded:g} {unit}, and the additive {is_of} begins near {begins:g} {unit}"
        notes.append(f"{events.source}: {words}, which may take very long; {better} begins nearer")
    return tuple(notes)


def _far_volume(events: EventTable, model: Model, config: Config) -> tuple[str, ...]:
    """Where the central volume begins far from that of the levels, which an output need not be."""
    volume = next((name for name, unit in model.pk.units.items() if unit == "L"), None)
    found = apparent_volume(events, runs.Units.of(config["dataset"]))
    initial = config["network"].get("initial")
    if volume is None or model.pk.observes is None or not isinstance(initial, dict):
        return ()
    begins = float(initial.get(volume, 1.0))
    if not (found > _FAR * begins or found < begins / _FAR):
        return ()
    say = as_option("network.initial", **{volume: float(f"{found:.2g}")})
    words = f"levels are those of about {float(f'{found:.2g}'):g} L, and {volume} begins near {begins:g} L"
    return (f"{events.source}: {words}, from where a fit may end somewhere else; {say} begins nearer",)


def _folds(config: Config, events: EventTable, folder: Path) -> dict[int, Fold]:
    """:raises InputError: a fold that does not exist, or that leaves no subject to test, or whose file counts
    subjects that are left out."""
    if events.left_out and "train" in config["split"]:
        raise InputError(
            f"{events.source}: subject {events.left_out[0]!r} has no observation, and split=files counts the "
            "file's subjects; expected an observation of each, or another split"
        )
    groups = events.labels.get(str(config["split"].get("column")), ())
    folds: dict[int, Fold] = {
        number: made(
            config["split"], "split", **name, n_subjects=len(events.ids), folder=folder, groups=groups
        )
        for number, name in folds_of(config).items()
    }
    for number, fold in folds.items():
        if not len(fold.test):
            raise InputError(f"fold={number}: leaves no subject to test; every one is trained on or held out")
    return folds


def model_of(config: Config) -> Model:
    """The model that a complete configuration describes.

    :raises InputError: options that are unknown or do not fit together.
    """
    # Where a record says of no method, it is of before there was another.
    units, pk = runs.Units.of_config(config), made(with_method(config, "dopri5")["pk"], "pk")
    pk = with_given(observing(pk, config["endpoints"]), config["given"])
    spread = distributions(config["distributions"], config["random_effects"], _begins(config), pk.above_zero)
    bounds = bounds_of(spread)
    factors = {name: of for name, of in of_hours(pk, units.hours).items() if name not in bounds}
    options = in_odds(config["network"], bounds)
    if isinstance(options.get("initial"), dict):  # in the data's units
        begin = {name: _over(value, factors.get(name, 1.0)) for name, value in options["initial"].items()}
        options = {**options, "initial": begin}
    network = made(options, "network", covariates=config["dataset"]["covariates"])
    omega, sigma = fixed(config)
    error = error_of(config, sigma, units)
    effects = tuple(config["random_effects"])
    if not isinstance(network, CovariateNetwork):
        factors = {}
    wrapped = Rescaled(network, factors, bounds) if factors or bounds else network
    if KNOWN_NETWORK in config:
        other = config[KNOWN_NETWORK]
        values = {name: torch.tensor(of, dtype=torch.float64) for name, of in other["values"].items()}
        wrapped = WithKnown(wrapped, model_of(other["config"]).network, values)
    given = _initial(config, effects, error, wrapped)
    of_network = {name: one for name, one in given.items() if name in wrapped.named}
    of_pi = {name: one for name, one in given.items() if name.startswith(("pi_", "rho_pi_"))}
    others = ((name, one) for name, one in given.items() if name not in of_pi)
    of_omega = {name: one for name, one in others if name.startswith(("omega_", "rho_"))}
    of_sigma = {name.removeprefix("sigma_"): one for name, one in given.items() if name.startswith("sigma_")}
    known = {name: one.begin for name, one in of_sigma.items() if not one.estimated}
    if known:
        error = fixing(error, known)
    return Model(
        wrapped.with_initial(of_network),
        pk,
        RandomEffects(effects, config["omega"], omega, spread, of_omega),
        error,
        {name: one for name, one in of_sigma.items() if one.estimated},
        _between_occasions(config, spread, of_pi),
    )


def _initial(
    config: Config, effects: Sequence[str], error: ErrorModel, network: Network
) -> dict[str, Coefficient]:
    """Option ``initial`` by name, and where nothing is said there, what was found from the data."""
    own = (config["occasions"] or {}).get("parameters", ())
    given = read_initial(config["initial"], effects, error.components, network.named, own)
    for name, one in given.items():
        component = name.removeprefix("sigma_")
        if component in error.fixed and component != name:
            raise InputError(f"initial.{name}: fixed.sigma.{component} says it too; leave one out")
        bounded = one.lower > 0 or one.upper < math.inf
        if name == "sigma_power" and bounded and error.size != 1 and "exponent" in error.free:
            raise InputError(
                "initial.sigma_power: has no bounds of its own beside an exponent that is estimated"
            )
    begun = config.get(STARTS) or {}
    of_network = config["network"].get("initial") or {}
    more = {
        name: value
        for name, value in begun.items()
        if name not in given and name not in of_network and name.removeprefix("sigma_") not in error.fixed
    }
    return {**read_initial(more, effects, error.components, network.named, own), **given}


def _begins(config: Config) -> dict[str, float]:
    """Where typical parameters begin, in the units of the data, of those that say it; what is no number is
    refused elsewhere."""
    network = config["network"]
    begin = dict(network.get("initial") or {}) if isinstance(network.get("initial"), dict) else {}
    for name, of in (network.get("equations") or {}).items():
        typical = of.get("typical") if isinstance(of, dict) else None
        if isinstance(typical, dict):
            typical = typical.get("initial", typical.get("fixed"))
        begin[name] = typical
    for name, given in {**(config.get(STARTS) or {}), **_mapping(config["initial"])}.items():
        begin[name] = given.get("initial", given.get("fixed")) if isinstance(given, dict) else given
    return {name: float(v) for name, v in begin.items() if isinstance(v, int | float) and v > 0}


def _between_occasions(
    config: Config, spread: Mapping[str, Distribution], begins: Mapping[str, Coefficient]
) -> RandomEffects | None:
    """What varies between the occasions of a subject."""
    given, known = config["occasions"], config["fixed"]
    if given is None:
        return None
    pi = known.get("pi") if isinstance(known, Mapping) else None
    names = tuple(given["parameters"])
    own = {name: of for name, of in spread.items() if name in names}
    return RandomEffects(names, structure_of(given), pi, own, begins, PI)


def _mapping(value: object) -> dict[str, Any]:
    """Itself, nothing of what is refused elsewhere."""
    return value if isinstance(value, dict) else {}


def of_hours(pk: PkModel, hours: float) -> dict[str, float]:
    """Parameter -> what one in h is in a unit of time of so many hours, of those that have time in
    their unit."""
    powers = {
        name: 1 if unit.endswith("/{time}") else -1 * (unit == "{time}") for name, unit in pk.units.items()
    }
    return {name: hours**power for name, power in powers.items() if power and hours != 1}


def _over(value: object, factor: float) -> object:
    """A number divided by a factor; what is none is refused elsewhere."""
    return value / factor if isinstance(value, int | float) and not isinstance(value, bool) else value
