"""Covariates -> typical -> individual parameters -> prediction, with Omega, residual error and priors."""

from medcm_cli.model.endpoint_errors import EndpointErrors
from medcm_cli.model.equations import Equations
from medcm_cli.model.known_network import WithKnown
from medcm_cli.model.log_normal_error import LogNormalError
from medcm_cli.model.model import Model, Values
from medcm_cli.model.networks import CovariateNetwork, Network, Rescaled, innermost
from medcm_cli.model.normal_error import CombinedVariancesError, PowerError, ResidualError
from medcm_cli.model.random_effects import RandomEffects
from medcm_cli.model.residual_error import ErrorModel
from medcm_cli.model.student_error import StudentError

__all__ = [
    "CombinedVariancesError",
    "CovariateNetwork",
    "EndpointErrors",
    "Equations",
    "ErrorModel",
    "LogNormalError",
    "Model",
    "Network",
    "PowerError",
    "RandomEffects",
    "Rescaled",
    "ResidualError",
    "StudentError",
    "Values",
    "WithKnown",
    "innermost",
]
