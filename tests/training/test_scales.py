"""What is trained in the place of what a model takes: logarithms, and places between bounds."""

import math

import pytest
import torch

from medcm_cli.errors import InputError
from medcm_cli.model.rows import Row
from medcm_cli.training.layout import Layout
from medcm_cli.training.scales import Scales
from tests.helpers import F64

VALUES = {"omega": torch.tensor([[-2.0, 3.0], [0.1, 50.0]]), "other": torch.tensor([[1.0, -1.0]])}
LAYOUT = Layout.of({**VALUES, "correlation": torch.tensor([[0.3, -0.4]])})
ROWS = [
    Row("omega", 0),
    Row("omega", 1, 0.05, 60.0),
    Row("correlation", 0, -0.5, 0.9, None, correlation=True),
]


@pytest.fixture
def values() -> torch.Tensor:
    return LAYOUT.pack({**VALUES, "correlation": torch.tensor([[0.3, -0.4]])}).to(F64)


def scales(log: bool = True, rows: list[Row] = ROWS) -> Scales:
    return Scales(LAYOUT.places, rows, log, torch.device("cpu"))


def test_there_and_back(values: torch.Tensor) -> None:
    trained = scales().trained(values)
    assert torch.allclose(scales().model(trained), values, rtol=1e-9)
    omega = torch.nn.functional.softplus(values)
    assert torch.allclose(trained[0], omega[0].log())
    share = (omega[1] - 0.05) / 59.95
    assert torch.allclose(trained[1], torch.log(share / (1 - share)))
    assert torch.equal(trained[LAYOUT.places["other"]], values[LAYOUT.places["other"]])


def test_bounds_are_kept_wherever_training_goes(values: torch.Tensor) -> None:
    for far in (-30.0, 30.0):
        found = scales().model(torch.full_like(values, far))
        assert bool((torch.nn.functional.softplus(found[1]) >= 0.05 - 1e-9).all())
        assert bool((torch.nn.functional.softplus(found[1]) <= 60.0 + 1e-9).all())
        rho = torch.tanh(found[LAYOUT.places["correlation"]])
        assert bool(((rho > -0.5 - 1e-9) & (rho < 0.9 + 1e-9)).all())


def test_gradients_flow_through(values: torch.Tensor) -> None:
    trained = scales().trained(values).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: scales().model(x), trained)


def test_the_papers_scale_is_left_as_it_is(values: torch.Tensor) -> None:
    plain = scales(log=False, rows=[Row("omega", 0), Row("omega", 1)])
    assert plain.plain
    assert plain.model(values) is values
    assert torch.equal(plain.trained(values), values)
    assert not scales(log=False).plain  # bounds hold all the same


def test_bounds_of_what_is_not_trained_are_refused() -> None:
    with pytest.raises(InputError, match="bounds of sigma"):
        scales(rows=[Row("sigma", 0, 0.1, math.inf)])
    assert scales(rows=[Row("sigma", 0)]).plain
