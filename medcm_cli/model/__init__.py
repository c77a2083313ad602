"""Covariates -> typical -> individual parameters -> prediction, with Omega, residual error and priors."""

from medcm_cli.model.model import Model, Values
from medcm_cli.model.networks import CovariateNetwork, Network, Rescaled
from medcm_cli.model.normal_error import ResidualError
from medcm_cli.model.random_effects import RandomEffects
from medcm_cli.model.residual_error import ErrorModel

__all__ = [
    "CovariateNetwork",
    "ErrorModel",
    "Model",
    "Network",
    "RandomEffects",
    "Rescaled",
    "ResidualError",
    "Values",
]
