"""The models of conf/pk that are given by a rate function, over 200 random regimens and parameters each,
against their equations by scipy."""

import numpy as np
import pytest
import torch

from medcm_cli.pk import solve
from tests.pk.regimens import random_regimens, together
from tests.pk.test_models import CASES, Case, named, values_of


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["rms", "largest"])
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{case.choice} {'-'.join(case.values)}") for case in CASES]
)
def test_200_random_regimens_equal_scipy(case: Case, norm: str) -> None:
    """Of subjects whose parameters differ, by the tolerances that the configuration has."""
    pk = named(case.choice, tuple(case.values), rtol=1e-6, atol=1e-6, norm=norm)
    schedule, values = random_regimens(case.size, 200, len(case.choice)), values_of(case, 200, 7)
    with torch.no_grad():
        got = solve(pk, schedule, values)[:, 0, :, 0].numpy()
    z = {"KIN": 1.0, **{name: value[0, :, 0].numpy() for name, value in values.items()}}
    start = np.stack([np.broadcast_to(row, 200) for row in case.start(z)]).astype(float)

    def right(t: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.stack([np.broadcast_to(row, y[0].shape) for row in case.right(t, y, z)])

    stiff = case.choice == "binding"
    amounts = together(right, start, case.dosed, schedule, stiff)
    want = np.stack([case.seen(y, z) for y in amounts])
    assert float((np.abs(got - want) / (1e-6 + 1e-6 * np.abs(want))).max()) < 10
