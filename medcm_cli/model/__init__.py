"""Covariates -> typical -> individual parameters -> prediction, with Omega, residual error and priors."""

from medcm_cli.model.model import Model, Values
from medcm_cli.model.networks import CovariateNetwork, Network
from medcm_cli.model.variability import RandomEffects, ResidualError

__all__ = ["CovariateNetwork", "Model", "Network", "RandomEffects", "ResidualError", "Values"]
