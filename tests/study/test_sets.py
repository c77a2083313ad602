"""Data sets in one file, as fits of one batch; and tables without time."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcm_cli.errors import InputError
from medcm_cli.study.job import Job
from tests.helpers import configuration

TRUE = {"E0": 5.0, "EMAX": 30.0, "ED50": 500.0}


def table(path: Path, sets: int = 3) -> pd.DataFrame:
    """Sets whose ids begin anew, rows in no order of doses."""
    generator = np.random.default_rng(1)
    rows = []
    for number in range(1, sets + 1):
        for patient in range(1, 4 + number):
            for dose in (1000.0, 0.0, 300.0):
                y = TRUE["E0"] + TRUE["EMAX"] * dose / (TRUE["ED50"] + dose)
                rows.append((number, patient, dose, y * np.exp(0.1 * generator.standard_normal())))
    frame = pd.DataFrame(rows, columns=["set", "id", "dose", "y"])
    frame.to_csv(path, index=False)
    return frame


def built(path: Path, outputs: Path, *options: str) -> Job:
    base = [
        *(
            "dataset=table",
            "dataset.name=sets",
            "dataset.covariates={}",
            "dataset.columns={dv: y}",
            "network=none",
        ),
        *("pk=dose_response_emax", "split=column", "split.column=set", "error=proportional", "dtype=float64"),
        *("network.global_parameters=[E0,EMAX,ED50]", "random_effects=[E0,ED50]", "epochs=3", "objective=fo"),
        "dataset.units={time: h, amount: mg, level: score}",
        "network.initial={E0: 5, EMAX: 30, ED50: 500}",
    ]
    chosen = {option.partition("=")[0] for option in options}
    kept = [option for option in base if option.partition("=")[0] not in chosen]
    return Job.build(configuration(path, outputs, *kept, *options))


def test_a_fold_has_the_subjects_of_its_value(tmp_path: Path) -> None:
    table(path := tmp_path / "sets.csv")
    job = built(path, tmp_path, "fold=[1,3]")
    events, folds = job.problem.events, job.problem.folds
    assert len(events.ids) == 4 + 5 + 6
    assert [events.ids[number] for number in folds[3].train] == [f"3/{number}" for number in range(1, 7)]
    assert (folds[1].train == folds[1].test).all()
    assert len(folds[1].train) == 4


@pytest.mark.parametrize("objective", ["fo", "foce", "vi"])
def test_a_set_of_a_batch_is_fitted_as_alone(tmp_path: Path, objective: str) -> None:
    frame = table(path := tmp_path / "sets.csv")
    frame[frame["set"] == 2].to_csv(alone := tmp_path / "alone.csv", index=False)
    together = built(path, tmp_path, "fold=[1,2,3]", f"objective={objective}").train(
        [(f, 1) for f in (1, 2, 3)]
    )
    one = built(alone, tmp_path, "fold=2", f"objective={objective}").train([(2, 1)])
    assert together.failures == (None, None, None)
    np.testing.assert_allclose(together.objective[:, 1].numpy(), one.objective[:, 0].numpy(), rtol=1e-6)


def test_what_is_observed_depends_on_the_column(tmp_path: Path) -> None:
    frame = table(path := tmp_path / "sets.csv")
    job = built(path, tmp_path)
    events = job.problem.events
    assert not events.is_dose.any()
    ordered = frame.sort_values(["set", "id", "dose"], kind="stable")
    np.testing.assert_array_equal(events.time, ordered["dose"])
    np.testing.assert_allclose(events.dv, ordered["y"])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("", ("fold=4",), "fold=4: no subject has set 4"),
        ("set=a", (), "split.column=set: has 'a'; expected whole numbers from 1"),
        ("", ("split.column=study",), "column 'study' is missing"),
        ("dose=-1", (), "line 2, column 'dose': is -1; expected 0 or more"),
        ("", ("pk.column=x",), "column 'x' is missing"),
        ("", ("pk.form=square",), "pk.form is 'square'; expected one of"),
        ("", ("split=all", "split.column=null"), "appears in more than one block of rows"),
        ("", ("random_effects=[CL]",), "random_effects is ['CL']"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(
    tmp_path: Path, change: str, options: tuple[str, ...], message: str
) -> None:
    frame = table(path := tmp_path / "sets.csv")
    if change:
        name, _, value = change.partition("=")
        frame[name] = frame[name].astype(object)
        frame.loc[0, name] = value
        frame.to_csv(path, index=False)
    with pytest.raises(InputError) as caught:
        built(path, tmp_path, *options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
