"""What a fit minimises: one file per objective, all behind the protocol of ``base``."""

from medcm_cli.objectives.agq import Agq
from medcm_cli.objectives.base import Criterion, Objective, State
from medcm_cli.objectives.fo import Fo
from medcm_cli.objectives.foce import Foce
from medcm_cli.objectives.focei import Focei
from medcm_cli.objectives.iw import Iw
from medcm_cli.objectives.laplace import Laplace
from medcm_cli.objectives.mse import Mse
from medcm_cli.objectives.saem import Saem
from medcm_cli.objectives.vi import Vi
from medcm_cli.runs.description import Description

__all__ = [
    "Agq",
    "Criterion",
    "Description",
    "Fo",
    "Foce",
    "Focei",
    "Iw",
    "Laplace",
    "Mse",
    "Objective",
    "Saem",
    "State",
    "Vi",
]
