"""What tests of training share."""

import pytest

from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.pk import one_compartment


@pytest.fixture
def plain() -> Model:
    """Without a network, so that everything has an optimum."""
    network = CovariateNetwork.build([], ["CL", "V1"], {}, {"CL": 0.2, "V1": 2.0})
    return Model(network, one_compartment(), RandomEffects(("CL", "V1")), ResidualError(("additive",)))
