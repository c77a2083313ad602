"""Patients whose parameters are known."""

from dataclasses import replace

import numpy as np
import torch

from medcm_cli.model import CovariateNetwork, Model, RandomEffects
from medcm_cli.patients.study import Study
from medcm_cli.pk import PkModel


def certain(study: Study, pk: PkModel, **typical: float) -> Study:
    """The study with a model whose parameters are known and hardly vary, in place of its own."""
    names = pk.parameters
    effects = RandomEffects(names[:1])
    model = Model(CovariateNetwork.build([], names, {}), pk, effects, study.fits.model.error)
    raw = {f"global.{name}": value + np.log(-np.expm1(-value)) for name, value in typical.items()}
    raw |= {"omega": -12.0, "sigma": -3.0}
    begun = model.init(study.fits.streams, torch.float64)
    estimates = {name: torch.full_like(value, raw[name]) for name, value in begun.items()}
    return replace(study, ensemble=replace(study.fits, model=model, estimates=estimates))
