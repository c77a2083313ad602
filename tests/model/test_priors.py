"""Priors of the population parameters against scipy, integration and the volume of correlation matrices."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import lognorm

from medcm_cli.errors import InputError
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.model.priors import PopulationPrior, lkj_partial
from medcm_cli.pk import two_compartment


def model_with(
    effects: tuple[str, ...],
    components: tuple[str, ...] = ("additive",),
    omega: list[list[float]] | None = None,
    sigma: dict[str, float] | None = None,
    structure: str = "full",
) -> Model:
    network = CovariateNetwork.build([], ["CL", "V1", "Q", "V2"], {})
    random_effects = RandomEffects(effects, structure, omega)
    return Model(network, two_compartment(), random_effects, ResidualError(components, sigma or {}))


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0, 7.3])
@pytest.mark.parametrize(("size", "column"), [(2, 0), (3, 0), (3, 1), (5, 2)])
def test_partial_correlations_integrate_to_one(size: int, column: int, shape: float) -> None:
    def density(raw: float) -> float:
        return math.exp(lkj_partial(torch.tensor(raw, dtype=torch.float64), column, size, shape))

    assert quad(density, -60, 60, points=[0])[0] == pytest.approx(1, abs=1e-7)


def test_density_of_two_correlated_effects() -> None:
    """LKJ(eta) of a 2 x 2 matrix is (1 - rho^2)^(eta - 1) / (2^(2 eta - 1) B(eta, eta)): 1/2 for 1, 3/4 (1 -
    rho^2) for 2."""
    raw = torch.linspace(-2, 2, 9, dtype=torch.float64)
    rho = raw.tanh()
    jacobian = torch.log(1 - rho**2)
    expected = {1.0: math.log(0.5) + jacobian, 2.0: math.log(0.75) + 2 * jacobian}
    for shape, values in expected.items():
        torch.testing.assert_close(lkj_partial(raw, 0, 2, shape), values)


def test_a_correlation_of_one_to_rounding_has_a_finite_density_and_slope() -> None:
    raw = torch.tensor([-400.0, 400.0], dtype=torch.float64, requires_grad=True)
    value = lkj_partial(raw, 0, 2, 1.0)
    (slope,) = torch.autograd.grad(value.sum(), raw)
    torch.testing.assert_close(slope, torch.tensor([2.0, -2.0], dtype=torch.float64))
    # log(1 - tanh^2) -> log 4 - 2 |raw|
    torch.testing.assert_close(value.detach(), torch.full((2,), math.log(2) - 800, dtype=torch.float64))


def correlations(prior: PopulationPrior, x: torch.Tensor) -> torch.Tensor:
    """rho_21, rho_31, rho_32."""
    report = prior.report(x)
    return torch.stack([report[f"rho_{i}{j}"] for i, j in ((2, 1), (3, 1), (3, 2))])


@pytest.mark.parametrize("shape", [1.0, 2.0])
def test_three_correlated_effects_have_a_density_on_matrices(shape: float) -> None:
    """In the off-diagonal entries themselves LKJ's density is det(C)^(eta - 1) / c. For eta = 1, c is the
    volume of the 3 x 3 correlation matrices, pi^2 / 2 (Rousseeuw and Molenberghs 1994); for 2 it is here the
    integral of det(C) over the cube, where C is positive definite."""
    prior = PopulationPrior(model_with(("CL", "V1", "Q"), sigma={"additive": 0.03}), shape)
    points = np.linspace(-1, 1, 202)[:-1] + 1 / 201
    r, s, t = np.meshgrid(points, points, points, indexing="ij", sparse=True)
    det = 1 - r * r - s * s - t * t + 2 * r * s * t
    constant = np.pi**2 / 2 if shape == 1 else np.where(det > 0, det, 0).sum() * (2 / 201) ** 3
    omega = torch.tensor([-1.5, -1.0, -2.0], dtype=torch.float64)
    of_omega = sum(lognorm(1, scale=math.exp(-1.5)).logpdf(math.exp(v)) + v for v in omega.tolist())
    generator = torch.Generator().manual_seed(3)
    for raw in torch.randn(6, 3, dtype=torch.float64, generator=generator):
        x = torch.cat([omega, raw])
        rho = correlations(prior, x)
        jacobian = torch.autograd.functional.jacobian(
            lambda value: correlations(prior, torch.cat([omega, value])), raw
        )
        matrix = np.eye(3)
        for value, (i, j) in zip(rho.tolist(), ((1, 0), (2, 0), (2, 1)), strict=True):
            matrix[i, j] = matrix[j, i] = value
        expected = (shape - 1) * np.linalg.slogdet(matrix)[1] - math.log(constant)
        expected += float(torch.linalg.slogdet(jacobian)[1]) + of_omega
        assert float(prior.log_density(x)) == pytest.approx(expected, abs=1e-3 if shape > 1 else 1e-9)


def test_coordinates_are_what_the_model_takes() -> None:
    """Reported values are those of the model at the values handed to it, for every combination of what is
    fixed."""
    omegas = (None, [[0.04, 0.01], [0.01, 0.02]])
    sigmas: tuple[dict[str, float], ...] = ({}, {"additive": 0.02}, {"proportional": 0.1})
    for omega, sigma, structure in itertools.product(omegas, sigmas, ("full", "diagonal")):
        model = model_with(("CL", "V1"), ("additive", "proportional"), omega, sigma, structure)
        prior = PopulationPrior(model, 1.0)
        x = 0.3 * torch.randn(prior.size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        x = x + torch.tensor(prior.location, dtype=torch.float64)[:, None]
        report, values = prior.report(x), prior.values(x)
        assert len(report) == prior.size == sum(len(value) for value in values.values())
        for name, of_model in model.error.sigmas(values).items():
            if name not in sigma:
                torch.testing.assert_close(report[f"sigma_{name}"], of_model)
        lower = model.omega_cholesky(values)
        assert ("omega_1" in report) == (omega is None)
        if omega is None:
            torch.testing.assert_close(report["omega_1"], lower[0][0])
            torch.testing.assert_close(report["omega_2"], (lower[1][0] ** 2 + lower[1][1] ** 2).sqrt())
        if omega is None and structure == "full":
            torch.testing.assert_close(report["rho_21"], lower[1][0] / report["omega_2"])


def test_with_everything_fixed_there_is_no_prior() -> None:
    model = model_with(("CL",), omega=[[0.04]], sigma={"additive": 0.03})
    with pytest.raises(InputError, match="fixed"):
        PopulationPrior(model)


@pytest.mark.parametrize("lkj", [0, -1, "one", True, math.inf])
def test_a_shape_that_makes_no_sense(lkj: float) -> None:
    with pytest.raises(InputError, match="lkj"):
        PopulationPrior(model_with(("CL", "V1")), lkj)
