"""Covariates -> typical -> individual parameters -> prediction, with Omega, residual error and priors."""

from medcm_cli.model.error_model import ErrorModel
from medcm_cli.model.model import Model, Values
from medcm_cli.model.networks import CovariateNetwork, Network
from medcm_cli.model.random_effects import RandomEffects
from medcm_cli.model.residual_error import ResidualError

__all__ = ["CovariateNetwork", "ErrorModel", "Model", "Network", "RandomEffects", "ResidualError", "Values"]
