"""Padded populations against plain loops over the rows of an event table."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medcm_cli.data import EventTable, Format, Population, read_events
from medcm_cli.pk import Schedule, solve, two_compartment
from medcm_cli.pk.schedule import CLOCK
from tests.helpers import schedule_of, table_of

F64 = torch.float64
# Per subject: doses as (time, duration, rate) and observations as (time, dv).
SUBJECTS: list[tuple[list[tuple[float, float, float]], list[tuple[float, float]]]] = [
    ([(0.0, 0.5, 4000.0)], [(4.0, 0.5), (24.0, 0.2), (48.0, 0.1)]),
    ([(0.0, 1.0, 1500.0), (24.0, 2.0, 500.0)], [(25.0, 0.7)]),  # inside the second infusion
    ([(1.0, 1 / 60, 60_000.0), (13.0, 12.0, 100.0), (25.0, 0.25, 8000.0)], [(0.5, 0.02), (26.0, 0.9)]),
    ([(0.0, 0.1, 20_000.0)], [(1.0, 0.9), (3.0, 0.8), (9.0, 0.5), (30.0, 0.15)]),
]
WEIGHT = [70.0, 12.5, 55.0, 101.0]
MOST_OBSERVATIONS, MOST_DOSES = 4, 3
FOLDS = [np.array([2, 0, 2]), np.array([3]), np.array([1, 1, 3, 0, 2])]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, F64])


def events(subjects: list[int] | None = None) -> EventTable:
    """Rows of the chosen subjects, each subject's sorted by time, doses first."""
    chosen = list(range(len(SUBJECTS))) if subjects is None else subjects
    rows = []
    for number, subject in enumerate(chosen):
        doses, observations = SUBJECTS[subject]
        own = [(number, time, True, rate, duration, np.nan) for time, duration, rate in doses]
        own += [(number, time, False, np.nan, np.nan, dv) for time, dv in observations]
        rows += sorted(own, key=lambda row: (row[1], not row[2]))
    covariates = {"weight": np.array([WEIGHT[number] for number in chosen])}
    return table_of([f"s{number}" for number in chosen], rows, covariates)


def everyone(dtype: torch.dtype = F64) -> Population:
    return Population.from_events(events(), dtype)


ON_THE_CLOCK = {f"schedule.{name}" for name in CLOCK}


def tensors_of(population: Population) -> dict[str, Tensor]:
    schedule = {f"schedule.{f.name}": getattr(population.schedule, f.name) for f in fields(Schedule)}
    names = ("present", "time", "dv", "observed")
    own = {name: getattr(population, name) for name in names}
    given = {name: values for name, values in schedule.items() if values is not None}
    return own | given | population.covariates


def check_subject(population: Population, n: int, fit: int, subject: int) -> None:
    """Place (n, fit) holds exactly the subject's own doses and observations, and masked padding."""
    doses, observations = SUBJECTS[subject]
    schedule = schedule_of(population)
    assert population.subject[n, fit] == subject
    assert population.covariates["weight"][0, n, fit] == WEIGHT[subject]
    for place in range(MOST_OBSERVATIONS):
        exists = place < len(observations)
        assert population.observed[place, 0, n, fit] == exists
        if exists:
            seen = (float(population.time[place, 0, n, fit]), float(population.dv[place, 0, n, fit]))
            assert seen == pytest.approx(observations[place], rel=1e-7)
    for place in range(MOST_DOSES):
        got = [float(v[place, 0, n, fit]) for v in (schedule.start, schedule.duration, schedule.amount)]
        if place < len(doses):
            start, duration, rate = doses[place]
            assert got == pytest.approx((start, duration, rate * duration), rel=1e-7)
        else:
            assert got[2] == 0  # nothing is given


@DTYPES
def test_every_row_is_in_its_place_and_the_rest_is_masked(dtype: torch.dtype) -> None:
    population = everyone(dtype)
    assert population.shape == (MOST_OBSERVATIONS, len(SUBJECTS), 1)
    assert population.ragged
    assert population.present.tolist() == [[1.0]] * 4
    for subject in range(len(SUBJECTS)):
        check_subject(population, subject, 0, subject)


@DTYPES
def test_selected_subjects_are_in_their_places(dtype: torch.dtype) -> None:
    population = everyone(dtype).select(FOLDS)
    assert population.shape == (MOST_OBSERVATIONS, 5, len(FOLDS))
    assert population.ragged
    for fit, rows in enumerate(FOLDS):
        for n in range(5):
            if n < len(rows):
                assert population.present[n, fit] == 1
                check_subject(population, n, fit, int(rows[n]))
            else:
                assert population.present[n, fit] == 0
                assert not population.observed[:, :, n, fit].any()


@DTYPES
def test_every_tensor_is_finite_and_has_the_type_asked_for(dtype: torch.dtype) -> None:
    for population in (everyone(dtype), everyone(dtype).select(FOLDS)):
        for name, values in tensors_of(population).items():
            assert values.dtype == (F64 if name in ON_THE_CLOCK else dtype), name
            assert values.isfinite().all(), name
        assert not population.subject.is_floating_point()


def test_nothing_is_ragged_where_every_subject_is_alike() -> None:
    population = everyone().select([np.array([0, 0]), np.array([0, 0])])
    assert population.ragged  # three observations each in a table with room for four
    alike = Population.from_events(events([0, 0, 0]), F64)
    assert not alike.ragged
    assert not alike.select([np.array([0, 1]), np.array([2, 2])]).ragged
    assert alike.select([np.array([0, 1]), np.array([2])]).ragged


def test_padding_does_not_change_a_subject_s_predictions() -> None:
    """Alone in its table a subject has no padding at all."""
    generator = torch.Generator().manual_seed(1)
    population = everyone().select(FOLDS)
    z = {name: torch.rand(3, generator=generator, dtype=F64) + 0.3 for name in ("CL", "V1", "Q", "V2")}
    together = solve(two_compartment(), population.schedule, z)
    for fit, rows in enumerate(FOLDS):
        for n, subject in enumerate(rows):
            alone = Population.from_events(events([int(subject)]), F64)
            assert not alone.ragged
            own = {name: values[fit : fit + 1] for name, values in z.items()}
            expected = solve(two_compartment(), alone.schedule, own)[:, 0, 0, 0]
            got = together[: len(expected), 0, n, fit]
            torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
            assert (got > 0).sum() == sum(
                time > SUBJECTS[subject][0][0][0] for time, _ in SUBJECTS[subject][1]
            )


def padded_values(population: Population, samples: int) -> Tensor:
    """Values that are large where nothing exists, so that a sum over padding is seen."""
    t, n, b = population.shape
    values = torch.randn(t, samples, n, b, generator=torch.Generator().manual_seed(2), dtype=F64)
    return torch.where(population.observed > 0, values, 1e6)


@pytest.mark.parametrize("samples", [1, 3])
def test_sums_over_observations_leave_padding_out(samples: int) -> None:
    population = everyone().select(FOLDS)
    values = padded_values(population, samples)
    per_subject = np.zeros((samples, 5, len(FOLDS)))
    counts = np.zeros(len(FOLDS))
    for fit, rows in enumerate(FOLDS):
        for n, subject in enumerate(rows):
            for place in range(len(SUBJECTS[subject][1])):
                counts[fit] += 1
                for sample in range(samples):
                    per_subject[sample, n, fit] += float(values[place, sample, n, fit])
    np.testing.assert_allclose(population.sum_observations(values), per_subject, rtol=1e-13)
    np.testing.assert_allclose(population.sum_all(values), per_subject.sum((0, 1)), rtol=1e-12)
    np.testing.assert_array_equal(population.observation_count, counts)


@pytest.mark.parametrize("shape", [(5, 3), (1, 5, 3), (4, 5, 3)])
def test_sums_over_subjects_leave_padding_out(shape: tuple[int, ...]) -> None:
    population = everyone().select(FOLDS)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    expected = [float(values[..., : len(rows), fit].sum()) for fit, rows in enumerate(FOLDS)]
    np.testing.assert_allclose(population.sum_subjects(values), expected, rtol=1e-12)


def test_sums_without_padding_take_everything() -> None:
    population = Population.from_events(events([0, 0, 0]), F64).select([np.array([0, 1]), np.array([2, 2])])
    values = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(4), dtype=F64)
    plain = values.numpy()
    np.testing.assert_allclose(population.sum_observations(values), plain.sum(0), rtol=1e-13)
    np.testing.assert_allclose(population.sum_all(values), plain.sum((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(population.sum_subjects(values[0]), plain[0].sum((0, 1)), rtol=1e-13)


def test_a_population_cannot_be_changed_and_selecting_leaves_it_as_it_was() -> None:
    population = everyone()
    before = {name: values.clone() for name, values in tensors_of(population).items()}
    selected = population.select(FOLDS)
    selected.dv.zero_()
    selected.covariates["weight"].zero_()
    for name, values in tensors_of(population).items():
        assert torch.equal(values, before[name]), name
    for name in ("dv", "ragged"):
        with pytest.raises(FrozenInstanceError):
            setattr(population, name, None)
    with pytest.raises(FrozenInstanceError):
        schedule_of(population).time = population.time  # type: ignore[misc]


REGIMEN = """\
id,time,evid,amt,rate,addl,ii,ss,cmt,dv,cens,wt,vwf
a,0,1,1000,0,1,12,,1,,,70,100
a,12,0,,,,,,,0.5,0,70,120
a,20,0,,,,,,,0.1,1,70,120
a,0,4,500,-2,,,,2,,,70,90
a,5,0,,,,,,,0.3,0,70,90
b,0,1,800,200,,24,1,,,,80,150
b,6,0,,,,,,,0.4,0,80,150
"""


@pytest.fixture
def regimen(tmp_path: Path) -> Population:
    path = tmp_path / "events.csv"
    path.write_text(REGIMEN)
    how = Format(over_time={"vwf": "record"}, bolus_duration=0)
    return Population.from_events(read_events(path, {"weight": "wt", "vwf": "vwf"}, how), F64)


def test_what_a_regimen_has_beyond_doses_and_levels(regimen: Population) -> None:
    schedule = schedule_of(regimen)
    assert schedule.amount[:, 0, :, 0].T.tolist() == [[1000, 1000, 500], [800, 0, 0]]
    assert schedule.compartment is not None
    assert schedule.compartment[:, 0, :, 0].T.tolist() == [[0, 0, 1], [-1, -1, -1]]
    assert schedule.rated is not None
    assert schedule.rated[:, 0, :, 0].T.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert schedule.interval is not None
    assert schedule.interval[:, 0, :, 0].T.tolist() == [[np.inf] * 3, [24, np.inf, np.inf]]
    assert schedule.modelled is not None
    assert schedule.modelled[:, 0, :, 0].T.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert schedule.visible is not None
    # Dose by observation: the second at 12 h comes after the trough then; the reset parts the third.
    assert schedule.visible[:, :, 0, 0, 0].tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert schedule.reset is not None
    assert schedule.reset[0, 0, 1, 0] == np.inf
    assert schedule.reset[0, 0, 0, 0] == schedule.start[2, 0, 0, 0]
    assert schedule.change is not None
    assert schedule.change[:, 0, 1, 0].tolist() == [np.inf] * 3
    assert schedule.change[:2, 0, 0, 0].tolist() == [0, 20]  # until a record its own value holds
    assert schedule.of_dose is not None
    assert schedule.of_time is not None
    assert schedule.of_dose[:, 0, 0, 0].tolist() == [0, 1, 2]  # the additional one goes by its time
    assert schedule.of_time[:, 0, 0, 0].tolist() == [1, 1, 2]
    assert regimen.covariates["vwf"][:, 0, :, 0].T.tolist() == [[100, 120, 90], [150, 150, 150]]
    assert regimen.covariates["weight"].shape == (1, 2, 1)
    assert regimen.censored is not None
    assert regimen.censored[:, 0, :, 0].T.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert regimen.time[:, 0, 0, 0].tolist() == [12, 20, 5]
    assert (schedule.time[1:, 0, 0, 0] > schedule.time[:-1, 0, 0, 0]).all()


def test_some_subjects_of_each_fit(regimen: Population) -> None:
    """The same as selecting them in the first place, every tensor of it."""
    folds = [np.array([0, 1, 0]), np.array([1, 0])]
    both = regimen.select(folds)
    index = torch.tensor([[2, 0], [1, 2]])  # the second fit's third subject is padding
    taken = both.take(index)
    wanted = regimen.select([folds[0][[2, 1]], folds[1][[0]]])
    assert taken.present.tolist() == [[1, 1], [1, 0]]
    everything = {**tensors_of(taken), "censored": taken.censored}
    for name, values in {**tensors_of(wanted), "censored": wanted.censored}.items():
        got = everything[name]
        assert values is not None
        assert got is not None
        torch.testing.assert_close(got[..., 0], values[..., 0], msg=name)
        torch.testing.assert_close(got[..., 0, 1], values[..., 0, 1], msg=name)
    assert taken.ragged


def test_times_far_apart_keep_their_digits_in_float32(tmp_path: Path) -> None:
    """A dose of a minute after a year: hours since its end are exact although the clock's float32 are not."""
    path = tmp_path / "events.csv"
    path.write_text("id,time,evid,amt,dv\na,0,1,1000,\na,8760,1,1000,\na,8760.25,0,,0.5\n")
    single = Population.from_events(read_events(path, {}, Format(bolus_duration=1 / 60)), torch.float32)
    assert float(schedule_of(single).since_end[1, 0, 0, 0, 0]) == pytest.approx(0.25 - 1 / 60, rel=1e-6)


Z = {"CL": 0.23, "V1": 2.7, "Q": 0.14, "V2": 0.7}
RAGGED = {
    "reset": "1,0,100,,1,0,0\n1,1,,1.5,0,0,0\n1,24,100,,1,1,12\n1,25,,1.6,0,0,0\n",
    "trough": "1,0,100,,1,0,0\n1,12,,0.4,0,0,0\n1,12,100,,1,0,0\n",
    "additional": "1,0,100,,1,2,12\n1,12,,0.4,0,0,0\n",
}


@pytest.mark.parametrize("case", RAGGED)
def test_padding_is_predicted_as_the_last_observation_is(tmp_path: Path, case: str) -> None:
    """Not as 0, where a proportional error has no sd and a masked NaN is NaN still."""
    rows = RAGGED[case] + "2,0,100,,1,0,0\n" + "".join(f"2,{t},,1,0,0,0\n" for t in (1, 2, 3, 4, 5))
    (tmp_path / "events.csv").write_text("id,time,amt,dv,evid,ss,ii\n" + rows)
    if case == "additional":
        (tmp_path / "events.csv").write_text("id,time,amt,dv,evid,addl,ii\n" + rows)
    population = Population.from_events(read_events(tmp_path / "events.csv", {}), F64)
    z = {name: torch.tensor([value], dtype=F64) for name, value in Z.items()}
    level = solve(two_compartment(), population.schedule, z)[:, 0, 0, 0]
    seen = int(population.observed[:, 0, 0, 0].sum())
    assert seen < len(level)
    assert (level > 0).all()
    assert level[seen:].tolist() == [level[seen - 1].item()] * (len(level) - seen)
