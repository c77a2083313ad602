"""Columns whose names or cells change what a table means: they are used, refused or told."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from medcm_cli.data import EventTable, Format, read_events, read_plain
from medcm_cli.data.names import meaning
from medcm_cli.errors import InputError
from tests.helpers import SHARED

FORMS = SHARED / "data" / "cases" / "08-file-forms"
LEVELS = {"id": "a", "time": [0.0, 5.0, 40.0], "evid": [1, 0, 0], "dv": [np.nan, 0.3, 0.2]}


def table(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(LEVELS | {"amt": [1000.0, np.nan, np.nan]} | columns)


def dose(value: float) -> list[float]:
    return [value, np.nan, np.nan]


def doses(events: EventTable) -> list[tuple[float, float, float]]:
    """Time, amount and duration of each."""
    rows = events.is_dose
    return list(
        zip(*(of[rows].tolist() for of in (events.time, events.amount, events.duration)), strict=True)
    )


@pytest.mark.parametrize(
    "names",
    [("rate", "addl", "ii"), ("Rate", "Addl", "Ii"), (" RATE", "ADDL ", " II"), ("rAtE", "aDDl", "iI")],
)
def test_roles_are_found_whatever_the_case_and_the_blanks(names: tuple[str, str, str]) -> None:
    """100 per hour, and three more doses 12 h apart, by hand."""
    cells = dict(zip(names, map(dose, (100, 3, 12)), strict=True))
    assert doses(read_events(table(**cells), {})) == [(12.0 * n, 1000, 10) for n in range(4)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mixed_case.csv", [0.0, 12, 24, 36]), ("rate_space.csv", [0.0])],
)
def test_files_of_the_field_are_read(name: str, expected: list[float]) -> None:
    if not FORMS.is_dir():
        pytest.skip("the cases are not beside this checkout (../shared/data/cases)")
    assert doses(read_events(FORMS / name, {})) == [(time, 1000, 10) for time in expected]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "dur.csv",
            "column 'DUR' is not used, and looks like 'duration'; rename it, or say '\\+dataset.columns=",
        ),
    ],
)
def test_files_of_another_form_are_refused(name: str, words: str) -> None:
    if not FORMS.is_dir():
        pytest.skip("the cases are not beside this checkout (../shared/data/cases)")
    with pytest.raises(InputError, match=words):
        read_events(FORMS / name, {})


def test_covariates_and_rows_to_keep_are_found_like_roles() -> None:
    events = read_events(
        table(**{" Wt": 70.0, "Group": [1, 1, 2]}), {"weight": "WT"}, Format(keep={"GROUP": [1]})
    )
    assert events.covariates["weight"].tolist() == [70]
    assert (~events.is_dose).sum() == 1


def options_in(message: str) -> dict[str, Any]:
    """The options that a message says, as Hydra reads them."""
    typed = [word for word in re.findall(r"'\+.*?'(?=[ ,]|$)", message) for word in shlex.split(word)]
    parsed = OverridesParser.create().parse_overrides(typed)
    return {override.key_or_group: override.value() for override in parsed}


CLINIC = {"time": "Zeit", "id": "Patient", "amt": "Dosis [mg]", "dv": "Conc", "wt": "Gewicht (kg)"}


@pytest.mark.parametrize(
    "missing", [("id", "time", "amt", "dv", "wt"), ("time", "dv"), ("amt",), ("wt",), ("id", "wt")]
)
def test_all_columns_that_are_missing_are_named_at_once(missing: tuple[str, ...]) -> None:
    """And the options that are said read the table, once the covariate's name is filled in."""
    frame = table(wt=70.0).rename(columns={name: CLINIC[name] for name in missing}).drop(columns="evid")
    with pytest.raises(InputError) as caught:
        read_events(frame, {"weight": "wt"})
    message = str(caught.value)
    which = message.split(" missing; ")[0]
    assert all(repr(name) in which for name in missing)
    said = options_in(message)
    assert said.get("dataset.covariates.weight") == ({"column": "NAME"} if "wt" in missing else None)
    roles = {name: CLINIC[name] for name in missing if name != "wt"}
    assert said.get("dataset.columns", {}) == roles
    weight = CLINIC["wt"] if "wt" in missing else "wt"
    assert read_events(frame, {"weight": weight}, Format(columns=roles)).ids == ("a",)


def test_patients_are_told_what_the_study_has() -> None:
    with pytest.raises(InputError, match=r"columns 'id' and 'wt' are missing; .*expected those of the study"):
        read_events(table().drop(columns=["id", "amt"]), {"weight": "wt"}, Format(patients=True))


def test_columns_that_look_like_roles_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        read_events(table(**{"DUR (h)": 1.0, "BLQ": 0}), {})
    assert options_in(str(caught.value)) == {"dataset.columns": {"duration": "DUR (h)", "cens": "BLQ"}}


@pytest.mark.parametrize(
    ("change", "option", "value"),
    [
        ({"DVID": [1, 1, 2]}, "dataset.keep", {"DVID": [1]}),
        ({"DV ID": [1, 1, 2]}, "dataset.keep", {"DV ID": [1]}),
        ({"wt": [70, None, None]}, "dataset.covariates", {"Gewicht (kg)": {"missing": "median"}}),
        ({"wt": [70, 71, 72]}, "dataset.over_time", {"Gewicht (kg)": "record"}),
        ({"wt": list("wmm")}, "dataset.covariates", {"Gewicht (kg)": {"values": {"m": 0, "w": 1}}}),
    ],
)
def test_an_option_that_an_error_names_can_be_typed(
    change: dict[str, Any], option: str, value: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        read_events(table(**({"wt": 70.0} | change)), {"Gewicht (kg)": "wt"})
    assert options_in(str(caught.value)).get(option) == value


@pytest.mark.parametrize("names", [("Rate", "RATE"), ("rate", " rate"), ("WT", "wt")])
def test_two_columns_of_one_name_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=f"columns '{names[0]}' and '{names[1]}' are both"):
        read_events(table(**dict.fromkeys(names, 70.0)), {"weight": "wt"})


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *[("DUR", "duration"), ("TINF", "duration"), ("BLQ", "cens"), ("LIMIT", "lloq"), ("LOQ", "lloq")],
        *[("RATE (mg/h)", "rate"), ("rate_", "rate"), ("ADDL.", "addl"), ("Steady state", "ss")],
        *[("COMP", "cmt"), ("inf_dur", "duration"), ("DV [mg/L]", "dv")],
    ],
)
def test_what_looks_like_a_role_is_refused_or_told(name: str, role: str) -> None:
    """Refused where the file has no other column for it, and told where it has."""
    assert meaning(name) == role
    cells = {name: dose(0), "wt": 70.0}
    if role != "dv":
        with pytest.raises(InputError, match=f"is not used, and looks like '{role}'"):
            read_events(table(**cells), {"weight": "wt"})
        frame = table(**cells, other=dose(0))
        assert read_events(table(**cells), {}, Format(columns={role: None})).notes == ()
        assert not read_events(frame, {}, Format(columns={role: name})).notes
        cells["other"] = dose(0)
    (line,) = read_events(table(**cells), {}, Format(columns={role: "other"} if role != "dv" else {})).notes
    assert repr(name) in line
    assert repr(role) in line


@pytest.mark.parametrize("name", ["RACE", "DATE", "AGE", "SEX", "HT", "BMI", "IPRED", "TAD", "LNDV", "STUDY"])
def test_columns_of_other_meaning_are_no_misspelt_roles(name: str) -> None:
    assert read_events(table(**{name: 1.0}), {}).notes == ()


@pytest.mark.parametrize(("name", "near"), [("RATES", "rate"), ("ADD", "addl"), ("DURATINO", "duration")])
def test_what_may_be_misspelt_is_told(name: str, near: str) -> None:
    (line,) = read_events(table(**{name: 1.0}), {}).notes
    assert line.endswith(f"column {name!r} is not used; it looks like {near!r}")


def test_a_covariate_that_may_be_misspelt_is_told() -> None:
    (line,) = read_events(table(weight=70.0, wieght=71.0), {"weight": "weight"}).notes
    assert line.endswith("column 'wieght' is not used; it looks like 'weight'")


def test_a_column_that_looks_like_a_role_is_no_covariate_to_describe(tmp_path: Path) -> None:
    table(DUR=1.0, wt=70.0).to_csv(tmp_path / "events.csv", index=False)
    how = Format({"duration": None})
    assert list(read_plain(tmp_path / "events.csv", how).covariates) == ["wt"]


def test_observations_of_several_kinds_are_refused_until_one_is_chosen() -> None:
    frame = table(DVID=[1, 1, 2])
    with pytest.raises(InputError, match=r"row 3, column 'DVID': is 2, .* '\+dataset.keep={DVID: \[1"):
        read_events(frame, {})
    assert read_events(frame, {}, Format(keep={"DVID": [1]})).dv[1:].tolist() == [0.3]
    assert (~read_events(frame, {}, Format(keep={"dvid": [1, 2]})).is_dose).sum() == 2
    assert (~read_events(table(DVID=[2, 1, 1]), {}).is_dose).sum() == 2  # a dose is of no kind


def test_an_interval_without_additional_doses_is_refused() -> None:
    with pytest.raises(InputError, match="row 1, column 'II': is 12 on a dose row that has neither"):
        read_events(table(II=dose(12)), {})
    assert len(doses(read_events(table(II=dose(12), ADDL=dose(0)), {}))) == 1


def test_an_amount_that_is_not_rate_times_duration_is_told() -> None:
    """Rate and duration count; what is rounded in a file agrees."""
    events = read_events(table(rate=dose(100), duration=dose(5)), {})
    assert doses(events) == [(0, 500, 5)]
    assert events.notes == (
        "table, row 1, column 'amt': is 1000, but rate times duration is 500, which counts (1 rows)",
    )
    assert read_events(table(rate=dose(60000), duration=dose(0.0167)), {}).notes == ()


def test_true_is_no_number() -> None:
    with pytest.raises(InputError, match="column 'dv': True is not a number"):
        read_events(table(dv=[np.nan, True, 0.5]), {})
    events = read_events(table(male=True), {"male": "male"})
    assert events.covariates["male"].tolist() == [1]


def test_names_of_subjects_have_no_blanks_around_them() -> None:
    assert read_events(table(id=["a ", " a", "a"]), {}).ids == ("a",)
