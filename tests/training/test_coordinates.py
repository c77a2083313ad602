"""Newton's method along the Cholesky factor of Omega: the same numbers, and an optimum where it is
singular."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.model.rows import raws_of
from medcm_cli.numerics.streams import Stream
from medcm_cli.numerics.triangular import lower_from_raw
from medcm_cli.objectives import Fo
from medcm_cli.pk import one_compartment, two_compartment
from medcm_cli.training.coordinates import Coordinates
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from medcm_cli.training.polish import polish_of, polished
from medcm_cli.training.trained import Trained
from tests.helpers import F64, table_of

NAMES = ("CL", "V1", "Q")
ADAM = functools.partial(torch.optim.Adam, lr=0.1, fused=True)
STREAMS = [Stream(5, 1, replicate) for replicate in (1, 2)]


def model_of(effects: RandomEffects) -> Model:
    """Of one compartment, or, where Q varies, of two."""
    begin = {"CL": 0.2, "V1": 2.0} | ({"Q": 0.1, "V2": 1.0} if "Q" in effects.names else {})
    pk = two_compartment() if "Q" in effects.names else one_compartment()
    network = CovariateNetwork.build([], list(begin), {}, begin)
    return Model(network, pk, effects, ResidualError(("additive",)))


# -- the numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["full", "diagonal", [["CL", "Q"]]], ids=str)
@pytest.mark.parametrize("log", [True, False])
def test_a_factor_is_that_of_its_sds_and_correlations(structure: str, log: bool) -> None:
    """As they begin, and moved: L L' of the entries is the covariance of what is then trained."""
    effects = RandomEffects(NAMES, structure)
    model = model_of(effects)
    pairs = len(effects.pairs)
    generator = torch.Generator().manual_seed(2)
    begin = torch.randn(1 + 3 + pairs, 4, generator=generator, dtype=F64)  # one row is of something else
    places = {"global.CL": 0, "omega": 1} | ({"correlation": 4} if pairs else {})
    found = Coordinates(model, places, begin, log)
    some = torch.tensor([0, 2, 3])
    torch.testing.assert_close(found.trained(found.begin[:, some], some), begin[:, some])

    def covariance(trained: Tensor) -> Tensor:
        sds = trained[1:4].exp() if log else torch.nn.functional.softplus(trained[1:4])
        lower = lower_from_raw(list(sds), list(trained[4:]), effects.pairs)
        rows = [torch.stack([*row, *[torch.zeros_like(sds[0])] * (3 - len(row))]) for row in lower]
        factor = torch.stack(rows).permute(2, 0, 1)
        return factor @ factor.mT

    y = found.begin[:, some] + 0.3 * torch.randn(1 + 3 + pairs, 3, generator=generator, dtype=F64)
    unit = (begin[1:4].exp() if log else torch.nn.functional.softplus(begin[1:4]))[:, some]
    factor = torch.diag_embed(y[1:4].T)
    for (i, j), entry in zip(effects.pairs, y[4:], strict=True):
        factor[:, i, j] = entry
    factor = unit.T[..., None] * factor
    moved = found.trained(y, some)
    torch.testing.assert_close(covariance(moved), factor @ factor.mT, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(moved[0], y[0], rtol=0, atol=0)


def test_what_is_known_in_part_or_has_bounds_stays() -> None:
    from medcm_cli.model.coefficients import coefficient

    known = coefficient("initial.omega_V1", "omega_V1", {"fixed": 0.3}, known=False, lower=0.0)
    bounded = coefficient("i", "omega_CL", {"initial": 0.3, "upper": 1.0}, known=False, lower=0.0)
    for given in ({"omega_V1": known}, {"omega_CL": bounded}):
        effects = RandomEffects(("CL", "V1"), "full", given=given)
        rows = len(effects.free) + 1
        begin = torch.randn(rows, 1, dtype=F64)
        found = Coordinates(model_of(effects), {"omega": 0, "correlation": rows - 1}, begin, log=True)
        y = begin + 0.5
        torch.testing.assert_close(found.trained(y, torch.tensor([0])), y, rtol=0, atol=0)


# -- an optimum at the boundary ----------------------------------------------------------------------


def population_without_variability(fits: int) -> Population:
    """Ten subjects with the same V1, eight levels each, and the same errors: between subjects there is less
    to explain than chance alone would leave."""
    generator = np.random.default_rng(8)
    rows: list[tuple[float, ...]] = []
    times = np.array([0.5, 1, 2, 4, 8, 12, 18, 24])
    error = 0.05 * generator.standard_normal(8)
    for subject in range(10):
        clearance = 0.2 * np.exp(0.3 * generator.standard_normal())
        rows.append((subject, 0.0, True, 2000.0 / 0.01, 0.01, np.nan))
        level = np.exp(-clearance / 2 * times) / 2 + error
        rows += [(subject, time, False, np.nan, np.nan, one) for time, one in zip(times, level, strict=True)]
    everyone = Population.from_events(table_of([str(i) for i in range(10)], rows, {}), F64)
    return everyone.select([np.arange(10)] * fits)


def fitted(effects: RandomEffects) -> Trained:
    model, population = model_of(effects), population_without_variability(2)
    polish = polish_of(model, Fo(), population)
    assert polish is not None
    course = Course(2000, 100, log=True, stop=True, brief=True)
    trained = train(model, Fo(), population, STREAMS, ADAM, course, F64)
    return polished(model, polish, population, STREAMS, trained, log=True)


def test_a_variance_of_zero_is_as_good_as_none() -> None:
    both, one = (fitted(RandomEffects(names, "diagonal")).ends for names in (("CL", "V1"), ("CL",)))
    assert both is not None
    assert one is not None
    assert bool(both.converged.all())
    torch.testing.assert_close(both.objective, one.objective, rtol=0, atol=1e-4)


def test_a_singular_omega_is_found_from_two_starts() -> None:
    """By scipy from where Omega is regular, along the entries of its factor."""
    effects = RandomEffects(("CL", "V1"))
    trained = fitted(effects)
    model, population = model_of(effects), population_without_variability(1)
    assert trained.ends is not None
    assert bool(trained.ends.converged.all())
    values = trained.layout.unpack(trained.ends.values)
    assert float(torch.tanh(values["correlation"]).abs().min()) > 0.9999
    low, high = trained.ends.objective.tolist()
    assert low == pytest.approx(high, abs=1e-4)
    names = [name for name in trained.layout.names if name not in ("omega", "correlation")]
    first = {name: value[..., :1] for name, value in values.items()}
    rest = torch.cat([first[name].reshape(-1) for name in names]).numpy()

    def loss(x: np.ndarray) -> float:
        a, b, c = (torch.tensor([entry], dtype=F64) for entry in x[:3])
        sds = torch.stack([a.abs(), (b * b + c * c).sqrt()])
        moved = dict(first)
        moved["omega"] = raws_of(sds)
        moved["correlation"] = torch.atanh((a.sign() * b / sds[1]).clamp(-1 + 1e-12, 1 - 1e-12))[None]
        for name, part in zip(names, np.split(x[3:], len(names)), strict=True):
            moved[name] = torch.from_numpy(part).view(moved[name].shape)
        state = replace(trained.state, trained=moved)
        return float(Fo().loss(model, population, state, None))

    begin = np.concatenate([[0.3, 0.05, 0.05], rest + 0.02])
    found = optimize.minimize(
        loss,
        begin,
        method="Nelder-Mead",
        options={"maxiter": 6000, "maxfev": 6000, "fatol": 1e-8, "xatol": 1e-6},
    )
    assert low <= found.fun + 1e-4
    assert low == pytest.approx(found.fun, abs=0.01)
