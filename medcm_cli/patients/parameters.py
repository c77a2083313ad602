"""The parameters of patients, typical and individual, and their posteriors, as tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from medcm_cli.data import EventTable, Population
from medcm_cli.data.edit import part
from medcm_cli.patients.measures import middle, pooled_quantiles, quantile_columns
from medcm_cli.patients.plausibility import odd_fits
from medcm_cli.patients.study import FEW, Study
from medcm_cli.posteriors.individual import Posterior
from medcm_cli.runs.units import NONE

HALF_LIFE = "half-life"


def individual_parameters(
    study: Study, population: Population, eta: Sequence[Tensor] | None
) -> dict[str, Tensor]:
    """Parameters, at the patient's last covariates and on the last occasion where they change, and the
    half-life where there is one.

    :param eta: R of (S, N, B), random effects; None for typical parameters, S = 1.
    :returns: name -> (S, N, B), in the study's units.
    """
    zeta = study.fits.model.typical(study.fits.estimates, population)
    z = zeta if eta is None else study.fits.model.individual(zeta, eta, population)
    shapes = study.fits.model.random_effects.shapes(study.fits.estimates)
    z = {name: value[-1] if value.ndim == 4 else value for name, value in z.items() if name not in shapes}
    last = study.fits.model.pk.half_life(z)
    shape = (1 if eta is None else len(eta[0]), *population.present.shape[:1], len(study.fits.records))
    every = z if last is None else {**z, HALF_LIFE: last}
    return {name: value.expand(shape) for name, value in every.items()}


def parameter_table(
    study: Study, population: Population, ids: Sequence[str], posterior: Posterior
) -> pd.DataFrame:
    """A row for each patient and parameter: see ``Prediction.parameters``."""
    individual = individual_parameters(study, population, posterior.draws)
    typical = individual_parameters(study, population, None)
    units = study.units.of_parameters({**study.fits.model.pk.units, HALF_LIFE: "{time}"})
    frames = [
        pd.DataFrame(
            {
                "patient": ids,
                "parameter": name,
                "unit": units.get(name, NONE),
                "typical": middle(typical[name][0]),
                **quantile_columns(pooled_quantiles(values[None])),
            }
        )
        for name, values in individual.items()
    ]
    return pd.concat(frames).sort_index(kind="stable")


def posterior_table(study: Study, ids: Sequence[str], posterior: Posterior) -> pd.DataFrame:
    """A row for each patient and fit: see ``Prediction.posteriors``."""
    fits = len(study.fits.records)
    where = pd.DataFrame([record.address.where for record in study.fits.records])
    columns: dict[str, Any] = {"patient": np.repeat(np.asarray(ids), fits)}
    columns |= {str(name): np.tile(where[name].to_numpy(), len(ids)) for name in where}
    names = study.fits.model.random_effects.names
    columns |= {f"eta_{name}": m.numpy().ravel() for name, m in zip(names, posterior.mode, strict=False)}
    for i, row in enumerate(posterior.covariance[: len(names)].unbind(0)):
        columns |= {f"cov_{i + 1}{j + 1}": row[j].numpy().ravel() for j in range(i + 1)}
    columns |= {
        "converged": posterior.converged.numpy().ravel(),
        "effective": posterior.effective.numpy().ravel(),
    }
    return pd.DataFrame(columns)


def odd_parameters(study: Study, events: EventTable) -> pd.DataFrame:
    """Fits whose typical parameters are far from the others', of the first patients: a table of notes."""
    first = study.population(part(events, np.arange(min(FEW, len(events.ids)))))
    return odd_fits(individual_parameters(study, first, None))
