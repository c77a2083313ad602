"""Tables of a trained batch, recomputed by numpy and scipy from nothing but the stored parameters."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from medcm_cli.data import EventTable, Population
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, Foce, Mse, Objective, State, Vi
from medcm_cli.pk import two_compartment
from medcm_cli.runs import REFERENCE, Units
from medcm_cli.runs.units import named_in
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from medcm_cli.training.results import Covariate, Reported, tables
from medcm_cli.training.trained import Trained
from tests.helpers import COVARIATES, MULTI_BRANCH, make_events

EVENTS = make_events(12, seed=4, ragged=True)
TRAIN = [np.array([0, 3, 3, 5, 8]), np.array([1, 2, 4, 6, 7, 7, 10])]  # of different sizes; drawn twice
TEST = [np.array([1, 2, 4, 11]), np.array([0, 3, 5, 8, 9, 11])]
OMEGA = np.array([[0.037, 0.0113], [0.0113, 0.017]])
# Grids with the reference on them: 70 = 35 * 2 and 100 = 10 * 10.
GRID = {"weight": Covariate(78.0, 70.0, "kg"), "vwf": Covariate(390.0, 100.0, "IU/dL")}
OBJECTIVES = {"mse": Mse(), "fo": Fo(), "foce": Foce(), "vi": Vi()}
Tables = list[dict[str, pa.Table]]


def optimizer(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.1)


UNITS = Units("IU/dL", 100.0, "IU/mL", "IU")


def make_tables(
    model: Model, objective: Objective, fits: Sequence[int] = (0, 1), epochs: int = 4, truth: bool = True
) -> Tables:
    """Fit ``i`` trains on ``TRAIN[i]``; two fits share a batch."""
    everyone = Population.from_events(EVENTS, torch.float64)
    population = everyone.select([TRAIN[i] for i in fits])
    test = everyone.select([TEST[i] for i in fits])
    streams = [Stream(0, fold + 1, 1) for fold in fits]
    trained: Trained = train(
        model, objective, population, streams, optimizer, Course(epochs, 2), torch.float64
    )
    omega = torch.from_numpy(OMEGA) if truth else None
    return tables(model, objective, population, test, trained, GRID, omega, Reported(UNITS))


def values_at(table: pa.Table, epoch: int) -> dict[str, np.ndarray]:
    """Trained values of one checkpoint, flat, by name."""
    frame = table.to_pandas()
    frame = frame[frame["epoch"] == epoch].astype({"name": str})
    assert not frame.duplicated(["name", "index"]).any()
    return {name: part.sort_values("index")["value"].to_numpy() for name, part in frame.groupby("name")}


def softplus(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0, x))


def typical(values: Mapping[str, np.ndarray], weight: float, vwf: float) -> dict[str, float]:
    """CL, V1, Q, V2 of the multi-branch network (docs/methods.md, "Network")."""

    def branch(name: str, x: float) -> np.ndarray:
        hidden = values[f"{name}.hidden_1.weight"] * x + values[f"{name}.hidden_1.bias"]
        heads = values[f"{name}.heads.weight"].reshape(-1, 12)
        return softplus(heads @ (softplus(10 * hidden) / 10) + values[f"{name}.heads.bias"])

    by_weight = branch("weight", weight / 150)
    by_vwf = branch("vwf", vwf / 350)
    return {
        "CL": by_weight[0] * by_vwf[0],
        "V1": by_weight[1],
        "Q": float(softplus(values["global.Q"])[0]),
        "V2": float(softplus(values["global.V2"])[0]),
    }


def level(z: Mapping[str, float], time: float, rate: float, duration: float) -> float:
    """IU/mL after one infusion from time 0, by a matrix exponential of the rate equations."""
    k10, k12, k21 = z["CL"] / z["V1"], z["Q"] / z["V1"], z["Q"] / z["V2"]
    matrix = np.array([[-(k10 + k12), k21, rate], [k12, -k21, 0], [0, 0, 0]])  # the third state stays 1
    end = expm(matrix * min(time, duration)) @ np.array([0, 0, 1.0])
    after = expm(matrix[:2, :2] * max(time - duration, 0)) @ end[:2]
    return float(after[0] / z["V1"] / 1000)


def error_on(events: EventTable, subjects: np.ndarray, values: Mapping[str, np.ndarray]) -> float:
    """RMSE of typical predictions, IU/mL."""
    squares = []
    for subject in subjects:
        mine = events.subject == subject
        dose = np.flatnonzero(mine & events.is_dose)
        assert len(dose) == 1
        z = typical(values, events.covariates["weight"][subject], events.covariates["vwf"][subject])
        for row in np.flatnonzero(mine & ~events.is_dose):
            predicted = level(z, events.time[row], events.rate[dose[0]], events.duration[dose[0]])
            squares.append((predicted - events.dv[row]) ** 2)
    return float(np.sqrt(np.mean(squares)))


def make_model(network: CovariateNetwork) -> Model:
    return Model(network, two_compartment(), RandomEffects(("CL", "V1")), ResidualError(("additive",)))


@pytest.fixture(scope="module")
def of_vi() -> Tables:
    return make_tables(make_model(CovariateNetwork.build(MULTI_BRANCH, ["Q", "V2"], COVARIATES)), Vi())


@pytest.mark.parametrize("fit", [0, 1])
def test_history_follows_from_the_parameters(of_vi: Tables, fit: int) -> None:
    history = of_vi[fit]["history"].to_pandas().set_index("epoch")
    assert history.index.tolist() == [0, 2, 4]
    for epoch, row in history.iterrows():
        values = values_at(of_vi[fit]["parameters"], int(epoch))
        assert row["rmse"] == pytest.approx(100 * error_on(EVENTS, TEST[fit], values), rel=1e-8)
        sd, rho = softplus(values["omega"]), np.tanh(values["correlation"][0])
        assert [row["omega_1"], row["omega_2"]] == pytest.approx(sd.tolist(), rel=1e-12)
        assert row["rho_21"] == pytest.approx(rho, rel=1e-12)
        assert row["sigma_additive"] == pytest.approx(float(softplus(values["sigma"])[0]), rel=1e-12)
        estimated = np.array([[sd[0] ** 2, rho * sd[0] * sd[1]], [rho * sd[0] * sd[1], sd[1] ** 2]])
        kl = 0.5 * (
            np.trace(np.linalg.inv(estimated) @ OMEGA)
            - 2
            + np.log(np.linalg.det(estimated) / np.linalg.det(OMEGA))
        )
        assert row["kl"] == pytest.approx(kl, rel=1e-9)


@pytest.mark.parametrize("fit", [0, 1])
def test_typical_parameters_are_those_at_the_references(of_vi: Tables, fit: int) -> None:
    """Of those that covariates shape, an effect's value over its relative one; of the others softplus."""
    history, effects = (of_vi[fit][name].to_pandas().set_index("epoch") for name in ("history", "effects"))
    for epoch, row in history.iterrows():
        values = values_at(of_vi[fit]["parameters"], int(epoch))
        for name in ("Q", "V2"):
            assert row[f"typical_{name}"] == pytest.approx(
                float(softplus(values[f"global.{name}"])[0]), rel=1e-9
            )
        of_epoch = effects.loc[epoch]
        reference = of_epoch["value"] / of_epoch["relative"]
        for name, value in zip(of_epoch["parameter"], reference, strict=True):
            assert row[f"typical_{name}"] == pytest.approx(value, rel=1e-9)
    metadata = of_vi[fit]["history"].schema.metadata
    assert metadata[REFERENCE] == ", ".join(f"{n} {c.reference:g} {c.unit}" for n, c in GRID.items()).encode()
    units = named_in(of_vi[fit]["history"].schema)
    assert [units[f"typical_{name}"] for name in ("CL", "V1", "Q", "V2")] == ["L/h", "L", "L/h", "L"]


def test_rmse_leaves_out_levels_below_a_limit(model: Model) -> None:
    """Their dv is the limit, not a level."""
    rows = np.flatnonzero(~EVENTS.is_dose)
    below = np.zeros(len(EVENTS.time), dtype=bool)
    below[rows[::4]] = True
    events = replace(EVENTS, censored=below, dv=np.where(below, 7.0, EVENTS.dv))
    everyone = Population.from_events(events, torch.float64)
    population, test = everyone.select([TRAIN[0]]), everyone.select([TEST[0]])
    trained = train(model, Vi(), population, [Stream(0, 1, 1)], optimizer, Course(2, 2), torch.float64)
    (of_fit,) = tables(model, Vi(), population, test, trained, GRID, None, Reported(UNITS))
    left = ~below | EVENTS.is_dose
    known = replace(
        EVENTS, **{name: getattr(EVENTS, name)[left] for name in ("subject", "time", "is_dose", "dv")}
    )
    known = replace(known, **{name: getattr(EVENTS, name)[left] for name in ("amount", "duration")})
    for row in of_fit["history"].to_pylist():
        values = values_at(of_fit["parameters"], row["epoch"])
        assert row["rmse"] == pytest.approx(100 * error_on(known, TEST[0], values), rel=1e-8)


def test_history_of_mse_has_no_random_effects(model: Model) -> None:
    for of_fit in make_tables(model, Mse()):
        assert of_fit["history"].column_names == [
            *("epoch", "objective_value", "rmse"),
            *(f"typical_{name}" for name in ("CL", "V1", "Q", "V2")),
        ]
        assert "random_effects" not in of_fit


def test_objective_of_mse_is_that_of_the_training_subjects(model: Model) -> None:
    for fit, of_fit in enumerate(make_tables(model, Mse())):
        for row in of_fit["history"].to_pylist():
            values = values_at(of_fit["parameters"], row["epoch"])
            assert row["objective_value"] == pytest.approx(
                error_on(EVENTS, TRAIN[fit], values) ** 2, rel=1e-8
            )


def test_no_kl_without_truth(model: Model) -> None:
    (of_fit, _) = make_tables(model, Fo(), truth=False)
    assert "kl" not in of_fit["history"].column_names
    assert "omega_1" in of_fit["history"].column_names


# -- parameters ------------------------------------------------------------------------------------


def test_parameters_are_all_there_at_each_checkpoint(of_vi: Tables) -> None:
    sizes = {
        "weight.hidden_1.weight": 12,
        "weight.hidden_1.bias": 12,
        "weight.heads.weight": 24,
        "weight.heads.bias": 2,
        "vwf.hidden_1.weight": 12,
        "vwf.hidden_1.bias": 12,
        "vwf.heads.weight": 12,
        "vwf.heads.bias": 1,
        "global.Q": 1,
        "global.V2": 1,
        "sigma": 1,
        "omega": 2,
        "correlation": 1,
    }
    seen = []
    for epoch in (0, 2, 4):
        values = values_at(of_vi[1]["parameters"], epoch)
        assert {name: len(value) for name, value in values.items() if not name.startswith("q.")} == sizes
        assert {name: len(value) for name, value in values.items() if name.startswith("q.")} == {
            "q.mean": 14,
            "q.sd": 14,
            "q.correlation": 7,
        }
        seen.append(values["omega"])
    assert not np.allclose(seen[0], seen[1])
    assert not np.allclose(seen[1], seen[2])
    assert set(of_vi[1]["parameters"]["epoch"].to_pylist()) == {0, 2, 4}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_tables_do_not_depend_on_what_else_is_in_the_batch(model: Model, name: str) -> None:
    """A fit with fewer subjects than another of its batch is padded there; its folder must not show it."""
    together, _ = make_tables(model, OBJECTIVES[name])
    (alone,) = make_tables(model, OBJECTIVES[name], fits=[0])
    assert set(alone) == set(together)
    for table, content in alone.items():
        a, b = (
            each.to_pandas().sort_values(list(each.column_names)[:3]) for each in (content, together[table])
        )
        pd.testing.assert_frame_equal(
            a.reset_index(drop=True), b.reset_index(drop=True), rtol=1e-4, atol=1e-6, check_categorical=False
        )  # as near as the tolerance of FOCE's modes lets two runs be


# -- random effects --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fo", "foce", "vi"])
def test_random_effects_have_a_row_per_training_subject(model: Model, name: str) -> None:
    for fit, of_fit in enumerate(make_tables(model, OBJECTIVES[name])):
        frame = of_fit["random_effects"].to_pandas()
        assert list(frame.columns) == ["subject", "eta_1", "eta_2", "cov_11", "cov_21", "cov_22"]
        assert frame["subject"].tolist() == (TRAIN[fit] + 1).tolist()
        assert np.isfinite(frame).all(axis=None)
        determinant = frame["cov_11"] * frame["cov_22"] - frame["cov_21"] ** 2
        assert (frame["cov_11"] > 0).all()
        assert (determinant > 0).all()


def test_random_effects_of_vi_are_q_at_the_estimates(of_vi: Tables) -> None:
    values = values_at(of_vi[1]["parameters"], 4)  # the widest fit of its batch: nothing padded
    frame = of_vi[1]["random_effects"].to_pandas()
    mean, sd = values["q.mean"].reshape(2, 7), softplus(values["q.sd"].reshape(2, 7))
    rho = np.tanh(values["q.correlation"])
    np.testing.assert_allclose(frame[["eta_1", "eta_2"]].to_numpy().T, mean, rtol=1e-12)
    np.testing.assert_allclose(frame["cov_11"], sd[0] ** 2, rtol=1e-12)
    np.testing.assert_allclose(frame["cov_22"], sd[1] ** 2, rtol=1e-12)
    np.testing.assert_allclose(frame["cov_21"], rho * sd[0] * sd[1], rtol=1e-12)


def test_a_subject_drawn_twice_has_the_same_mode_twice(model: Model) -> None:
    (of_fit, _) = make_tables(model, Foce())
    frame = of_fit["random_effects"].to_pandas()
    twice = frame[frame["subject"] == 4].drop(columns="subject").to_numpy()
    assert len(twice) == 2
    np.testing.assert_allclose(twice[0], twice[1])
    others = frame[frame["subject"] != 4]["eta_1"].to_numpy()
    assert not np.isclose(others, twice[0, 0]).any()


# -- effects ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [0, 1])
def test_effects_follow_from_the_parameters(of_vi: Tables, fit: int) -> None:
    frame = of_vi[fit]["effects"].to_pandas().astype({"covariate": str, "parameter": str})
    found = set(zip(frame["covariate"], frame["parameter"], strict=True))
    assert found == {("weight", "CL"), ("weight", "V1"), ("vwf", "CL")}
    for (epoch, covariate, parameter), part in frame.groupby(["epoch", "covariate", "parameter"]):
        assert part["x"].tolist() == pytest.approx(np.linspace(0, GRID[covariate].scale, 40).tolist())
        values = values_at(of_vi[fit]["parameters"], epoch)
        at = {"weight": 70.0, "vwf": 100.0}
        curve = np.array([typical(values, **{**at, covariate: x})[parameter] for x in part["x"]])
        np.testing.assert_allclose(part["value"], curve, rtol=1e-10)
        np.testing.assert_allclose(part["relative"], curve / typical(values, **at)[parameter], rtol=1e-10)
    assert set(frame["epoch"]) == {0, 2, 4}


def test_relative_effect_is_one_at_the_reference(of_vi: Tables) -> None:
    frame = of_vi[0]["effects"].to_pandas().astype({"covariate": str})
    for covariate, reference in (("weight", 70), ("vwf", 100)):
        at = frame[(frame["covariate"] == covariate) & np.isclose(frame["x"], reference)]
        assert len(at) == (6 if covariate == "weight" else 3)
        np.testing.assert_allclose(at["relative"], 1, rtol=1e-12)


def test_a_network_without_covariates_has_no_effects() -> None:
    plain = CovariateNetwork.build([], ["CL", "V1", "Q", "V2"], COVARIATES)
    (of_fit, _) = make_tables(make_model(plain), Fo())
    assert of_fit["effects"].num_rows == 0
    assert of_fit["history"].num_rows == 3


# -- failures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failing(Objective):
    """First order, but the loss of fit ``victim`` is NaN from epoch ``epoch`` on."""

    victim: int | None
    epoch: int
    seen: list[int]
    mixed: ClassVar[bool] = True

    def init(
        self, model: Model, population: Population, streams: Sequence[Stream], dtype: torch.dtype
    ) -> State:
        return Fo().init(model, population, streams, dtype)

    def noise_shape(self, model: Model, population: Population) -> tuple[int, ...] | None:
        return Fo().noise_shape(model, population)

    def refresh(
        self, model: Model, population: Population, state: State, noise: Tensor | None = None
    ) -> State:
        self.seen[0] += 1
        return Fo().refresh(model, population, state, noise)

    def loss(self, model: Model, population: Population, state: State, noise: Tensor | None) -> Tensor:
        loss = Fo().loss(model, population, state, noise)
        if self.seen[0] < self.epoch:
            return loss
        poison = torch.zeros_like(loss)
        poison[slice(None) if self.victim is None else self.victim] = torch.nan
        return loss + poison

    def random_effects(
        self, model: Model, population: Population, state: State
    ) -> tuple[Tensor, Tensor] | None:
        return Fo().random_effects(model, population, state)


@pytest.mark.parametrize(
    ("epoch", "kept"), [(1, []), (2, [0]), (3, [0, 2]), (4, [0, 2]), (5, [0, 2, 4]), (6, [0, 2, 4])]
)
def test_failed_fit_has_the_checkpoints_before_its_failure(model: Model, epoch: int, kept: list[int]) -> None:
    healthy, failed = make_tables(model, Failing(1, epoch, [0]), epochs=6)
    for name in ("history", "parameters", "effects"):
        assert sorted(set(failed[name]["epoch"].to_pylist())) == kept
        assert sorted(set(healthy[name]["epoch"].to_pylist())) == [0, 2, 4, 6]
        assert failed[name].schema == healthy[name].schema
    untouched = make_tables(model, Fo(), epochs=6)[1]
    for name in ("parameters", "effects"):
        expected = untouched[name].to_pandas()
        expected = expected[expected["epoch"].isin(kept)].reset_index(drop=True)
        pd.testing.assert_frame_equal(failed[name].to_pandas(), expected, check_categorical=False)


def test_tables_have_their_columns_even_where_every_fit_failed_at_once(model: Model) -> None:
    whole = make_tables(model, Fo())
    for fit, of_fit in enumerate(make_tables(model, Failing(None, 1, [0]))):
        assert set(of_fit) == set(whole[fit])
        for name in ("history", "parameters", "effects"):
            assert of_fit[name].num_rows == 0
            assert of_fit[name].schema == whole[fit][name].schema
