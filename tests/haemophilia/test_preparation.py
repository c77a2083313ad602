"""Covariate preparation, value by value against the rules, and every impossible value refused."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from medcm_cli.errors import InputError
from medcm_cli.haemophilia.covariates import fat_free_mass, height_mode, vwf_mode, weight_median
from medcm_cli.haemophilia.preparation import (
    Preparation,
    Prepared,
    check_baseline,
    prepare,
    subtract_baseline,
    table,
)

NAN = np.nan
COLUMNS = {"age": "age", "height": "ht", "weight": "wt", "blood_group_o": "bgo", "vwf": "vwf"}
IDS = ["a", "b", "c", "d"]
# a has everything, b no height, c no weight and no VWF:Ag, d nothing but an age and a historic VWF:Ag.
RAW = {
    "age": [30.0, 12.0, 70.0, 50.0],
    "height": [180.0, NAN, 170.0, NAN],
    "weight": [80.0, 45.0, NAN, NAN],
    "blood_group_o": [1.0, 0.0, 1.0, NAN],
    "vwf": [120.0, 90.0, NAN, NAN],
    "vwf_historic": [NAN, 60.0, NAN, 150.0],
}


def arrays(**changed: list[float]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in {**RAW, **changed}.items()}


def steps(**options: Any) -> Preparation:
    columns = {**COLUMNS, "vwf_historic": "vwf_hist"}
    return Preparation.build({"columns": columns, "impute": ["height", "weight", "vwf"], **options})


def one(function: Any, *values: float) -> float:
    return float(function(*(np.array([value]) for value in values))[0])


# -- what is imputed, and how it is recorded -------------------------------------------------------


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepare(arrays(), steps(), IDS)


def test_measured_values_stay(prepared: Prepared) -> None:
    for name in ("age", "height", "weight", "blood_group_o", "vwf"):
        known = prepared.origin[name] == "measured"
        np.testing.assert_array_equal(known, ~np.isnan(RAW[name]))
        np.testing.assert_array_equal(prepared.covariates[name][known], np.array(RAW[name])[known])


def test_height_is_its_mode_and_weight_its_median(prepared: Prepared) -> None:
    height, weight = prepared.covariates["height"], prepared.covariates["weight"]
    assert prepared.origin["height"].tolist() == ["measured", "imputed", "measured", "imputed"]
    assert prepared.origin["weight"].tolist() == ["measured", "measured", "imputed", "imputed"]
    # 12 y is a point of the height table.
    np.testing.assert_allclose(height, [180, 156.4, 170, one(height_mode, 50)])
    np.testing.assert_allclose(weight, [80, 45, one(weight_median, 170), one(weight_median, height[3])])


def test_vwf_is_measured_or_a_mode_or_averaged_with_a_historic_value(prepared: Prepared) -> None:
    # b has both: what was measured in this setting counts.
    assert prepared.origin["vwf"].tolist() == ["measured", "measured", "imputed", "averaged"]
    x = np.linspace(20, 300, 400_001)
    density = stats.lognorm(0.347819, scale=0.700869 * np.exp(0.157888 + 4.11 + 0.5152 * 70 / 45)).pdf(x)
    expected = [120, 90, x[int(np.argmax(density))], (150 + one(vwf_mode, 50, NAN)) / 2]
    np.testing.assert_allclose(prepared.covariates["vwf"], expected, rtol=1e-4)
    assert "vwf_historic" not in prepared.covariates


def test_body_size_is_derived_from_what_was_prepared(prepared: Prepared) -> None:
    age, height, weight = (prepared.covariates[name] for name in ("age", "height", "weight"))
    np.testing.assert_allclose(prepared.covariates["ffm"], fat_free_mass(age, weight, height))
    np.testing.assert_allclose(prepared.covariates["bmi"], weight / (height / 100) ** 2)
    for name in ("ffm", "bmi"):
        assert prepared.origin[name].tolist() == ["derived"] * 4


def test_nothing_is_imputed_that_was_not_asked_for() -> None:
    columns = {name: name for name in COLUMNS}
    raw = {name: values for name, values in arrays().items() if name in columns}
    got = prepare(raw, Preparation.build({"columns": columns, "impute": ["height"]}), IDS)
    assert got.origin["height"].tolist() == ["measured", "imputed", "measured", "imputed"]
    for name in ("weight", "vwf"):
        np.testing.assert_array_equal(got.covariates[name], RAW[name])
        assert got.origin[name].tolist() == ["measured", "measured", "missing", "missing"]
    assert got.origin["ffm"].tolist() == ["derived", "derived", "missing", "missing"]
    # A weight is imputed where the height is unknown too, as if it were the mode given age.
    got = prepare(raw, Preparation.build({"columns": columns, "impute": ["weight"]}), IDS)
    assert got.origin["height"].tolist() == ["measured", "missing", "measured", "missing"]
    np.testing.assert_allclose(got.covariates["weight"][3], one(weight_median, one(height_mode, 50)))


def test_a_covariate_without_a_column_can_be_imputed() -> None:
    got = prepare(
        {"age": np.array([20.0, 60.0])},
        Preparation.build({"columns": {"age": "age"}, "impute": ["height", "weight", "vwf"]}),
        ["1", "2"],
    )
    for name in ("height", "weight", "vwf"):
        assert got.origin[name].tolist() == ["imputed"] * 2
    np.testing.assert_allclose(got.covariates["vwf"], [one(vwf_mode, age, NAN) for age in (20, 60)])
    assert set(got.covariates) == {"age", "height", "weight", "vwf", "bmi", "ffm"}


def test_each_subject_is_prepared_as_if_alone(prepared: Prepared) -> None:
    for number, subject in enumerate(IDS):
        alone = prepare({name: v[number : number + 1] for name, v in arrays().items()}, steps(), [subject])
        for name, values in prepared.covariates.items():
            np.testing.assert_array_equal(alone.covariates[name], values[number : number + 1])
            assert alone.origin[name].tolist() == [prepared.origin[name][number]]


def test_vwf_as_a_fraction() -> None:
    fraction = arrays(vwf=[1.2, 0.9, NAN, NAN], vwf_historic=[NAN, 0.6, NAN, 1.5])
    got = prepare(fraction, steps(vwf_unit="fraction"), IDS)
    expected = prepare(arrays(), steps(), IDS)
    np.testing.assert_allclose(got.covariates["vwf"], expected.covariates["vwf"])
    assert got.origin["vwf"].tolist() == expected.origin["vwf"].tolist()


# -- around surgery --------------------------------------------------------------------------------


def test_vwf_around_surgery() -> None:
    """The mean of the subject's values, else the prophylaxis value, else what that would be imputed as; all
    but the first times 1.3."""
    columns = {**COLUMNS, "vwf_historic": "vwf_hist", "vwf_prophylaxis": "vwf_before"}
    raw = arrays(vwf=[180.0, NAN, NAN, NAN], vwf_historic=[50.0, 50.0, NAN, 150.0])
    raw["vwf_prophylaxis"] = np.array([100.0, 90.0, NAN, NAN])
    got = prepare(raw, steps(columns=columns, surgery=True), IDS)
    assert got.origin["vwf"].tolist() == ["mean", "prophylaxis x 1.3", "imputed x 1.3", "averaged x 1.3"]
    mode = one(vwf_mode, 70, 1)
    expected = [180, 1.3 * 90, 1.3 * mode, 1.3 * (150 + one(vwf_mode, 50, NAN)) / 2]
    np.testing.assert_allclose(got.covariates["vwf"], expected)
    # Without imputation the prophylaxis value still counts.
    del columns["vwf_historic"], raw["vwf_historic"]
    got = prepare(raw, steps(columns=columns, surgery=True, impute=[]), IDS)
    assert got.origin["vwf"].tolist() == ["mean", "prophylaxis x 1.3", "missing", "missing"]
    np.testing.assert_allclose(got.covariates["vwf"], [180, 117, NAN, NAN])


# -- baseline --------------------------------------------------------------------------------------


def test_the_baseline_is_subtracted_from_every_observation_of_its_subject() -> None:
    dv = np.array([NAN, 0.9, 0.02, NAN, 0.5, 0.01])
    subject = np.array([0, 0, 0, 1, 1, 1])
    baseline = check_baseline(np.array([0.03, 0.0]), "baseline", ["a", "b"], "file")
    got = subtract_baseline(dv, subject, baseline)
    np.testing.assert_allclose(got, [NAN, 0.87, -0.01, NAN, 0.5, 0.01])
    assert dv[1] == 0.9


@pytest.mark.parametrize(
    ("value", "what"), [(NAN, "is missing"), (-0.01, "is -0.01"), (3.0, "is 3"), (np.inf, "is inf")]
)
def test_a_baseline_that_makes_no_sense_is_refused(value: float, what: str) -> None:
    with pytest.raises(InputError) as caught:
        check_baseline(np.array([0.0, value]), "base", ["a", "b"], "events.csv")
    message = str(caught.value)
    assert f"events.csv: subject 'b', column 'base': {what}; expected" in message
    assert "IU/mL" in message


# -- the record ------------------------------------------------------------------------------------


def test_the_table_has_a_row_per_subject(prepared: Prepared) -> None:
    got = table(IDS, prepared, np.array([0.0, 0.01, 0.02, 0.03])).to_pandas()
    assert got["id"].tolist() == IDS
    assert got["baseline_subtracted"].tolist() == [0.0, 0.01, 0.02, 0.03]
    for name, values in prepared.covariates.items():
        np.testing.assert_array_equal(got[name], values)
        assert got[f"{name}_origin"].tolist() == prepared.origin[name].tolist()
    assert len(got.columns) == 2 + 2 * len(prepared.covariates)
    missing = table(["a"], Prepared({"vwf": np.array([NAN])}, {"vwf": np.array(["missing"])}))
    assert missing["vwf"].null_count == 1
    assert missing.column_names == ["id", "vwf", "vwf_origin"]


def test_what_a_model_needs(prepared: Prepared) -> None:
    chosen = prepared.need(["ffm", "vwf"], IDS, "events.csv")
    assert list(chosen) == ["ffm", "vwf"]
    np.testing.assert_array_equal(chosen["ffm"], prepared.covariates["ffm"])
    with pytest.raises(InputError, match=r"^events.csv: no covariate 'lean' .* age, blood_group_o, height"):
        prepared.need(["lean"], IDS, "events.csv")
    with pytest.raises(InputError, match=r"^events.csv: subject 'd' has no blood_group_o$"):
        prepared.need(["blood_group_o"], IDS, "events.csv")
    incomplete = prepare(arrays(), steps(impute=["vwf"]), IDS)
    with pytest.raises(InputError, match=r"subject 'c' has no weight; dataset.preparation.impute can have"):
        incomplete.need(["weight"], IDS, "events.csv")


# -- values and options that are refused -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "column", "value", "expected"),
    [
        ("age", "age", -1.0, "0 to 120 y"),
        ("age", "age", 121.0, "0 to 120 y"),
        ("height", "ht", 1.8, "30 to 250 cm, not m"),
        ("height", "ht", 0.5, "30 to 250 cm, not m"),
        ("height", "ht", 2.5, "30 to 250 cm, not m"),
        ("height", "ht", 0.0, "30 to 250 cm"),
        ("height", "ht", 1800.0, "30 to 250 cm"),
        ("weight", "wt", 0.0, "1 to 400 kg"),
        ("weight", "wt", -70.0, "1 to 400 kg"),
        ("weight", "wt", 70_000.0, "1 to 400 kg"),
        ("vwf", "vwf", -5.0, "0 to 1000 IU/dL"),
        ("vwf", "vwf", 12_000.0, "0 to 1000 IU/dL"),
        ("vwf_historic", "vwf_hist", -0.1, "0 to 1000 IU/dL"),
        ("blood_group_o", "bgo", 2.0, "1 for blood group O or 0 for another"),
    ],
)
def test_impossible_values_are_refused(name: str, column: str, value: float, expected: str) -> None:
    values = list(RAW[name])
    values[1] = value
    with pytest.raises(InputError) as caught:
        prepare(arrays(**{name: values}), steps(), IDS, "events.csv")
    assert str(caught.value) == (
        f"events.csv: subject 'b', column {column!r}: {name} is {value:g}; expected {expected}"
    )


def test_limits_themselves_are_accepted() -> None:
    raw = arrays(age=[0.0, 120.0, 70, 50], height=[30.0, 250.0, 170, NAN], weight=[1.0, 400.0, NAN, NAN])
    raw["vwf"] = np.array([0.0, 1000.0, NAN, NAN])
    got = prepare(raw, steps(), IDS)
    assert all(np.isfinite(got.covariates[name]).all() for name in ("height", "weight", "vwf", "ffm"))


@pytest.mark.parametrize("name", ["vwf", "vwf_historic"])
def test_fractions_given_for_iu_per_dl_are_refused(name: str) -> None:
    raw = arrays(**{name: [NAN, 0.9, 1.4, NAN]})
    words = f"subject 'b', column .*: {name} is 0.9; expected IU/dL; .* dataset.preparation.vwf_unit=fraction"
    with pytest.raises(InputError, match=words):
        prepare(raw, steps(), IDS)
    with pytest.raises(InputError, match="subject 'a', column 'vwf': vwf is 120; expected 0 to 10 fraction"):
        prepare(arrays(), steps(vwf_unit="fraction"), IDS)


@pytest.mark.parametrize(
    ("missing", "imputed"),
    [("height", "height"), ("weight", "weight"), ("vwf", "vwf")],
)
def test_an_imputation_without_age_is_refused(missing: str, imputed: str) -> None:
    full = {"height": [180.0] * 4, "weight": [80.0] * 4, "vwf": [100.0] * 4, "age": [30.0, NAN, 20, 20]}
    full["blood_group_o"] = full["vwf_historic"] = [NAN] * 4
    prepare({n: np.array(v) for n, v in full.items()}, steps(), IDS)  # not needed
    full[missing] = [80.0, NAN, 80.0, 80.0]
    if missing == "weight":
        full["height"] = [180.0, NAN, 180, 180]
    chosen = steps(impute=["weight", "vwf"] if missing == "weight" else ["height", "weight", "vwf"])
    words = f"^file: subject 'b', column 'age': is missing; {imputed} is imputed given age$"
    with pytest.raises(InputError, match=words):
        prepare({n: np.array(v) for n, v in full.items()}, chosen, IDS, "file")


def test_a_weight_given_a_measured_height_needs_no_age() -> None:
    raw = arrays(age=[NAN] * 4, height=[180.0] * 4, vwf=[100.0] * 4)
    got = prepare(raw, steps(), IDS)
    np.testing.assert_allclose(got.covariates["weight"][2], one(weight_median, 180))
    assert got.origin["ffm"].tolist() == ["missing"] * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("impute", "dataset.preparation is 'impute'; expected columns, impute"),
        ([], r"dataset.preparation is \[\]"),
        ({"columns": COLUMNS, "imput": ["vwf"]}, "dataset.preparation.imput: no such option"),
        ({}, "dataset.preparation.columns is None"),
        ({"columns": {}}, "dataset.preparation.columns is {}"),
        ({"columns": ["age"]}, "dataset.preparation.columns is"),
        ({"columns": {"sex": "sex"}}, "dataset.preparation.columns.sex: no such covariate; .* vwf_historic"),
        ({"columns": {"age": 3}}, "dataset.preparation.columns.age is 3; expected a column"),
        ({"columns": {"age": ""}}, "dataset.preparation.columns.age is ''"),
        ({"columns": COLUMNS, "impute": "vwf"}, "dataset.preparation.impute is 'vwf'; expected a list"),
        ({"columns": COLUMNS, "impute": ["age"]}, "dataset.preparation.impute: 'age'; expected some of"),
        ({"columns": COLUMNS, "surgery": 1}, "dataset.preparation.surgery is 1; expected true or false"),
        ({"columns": COLUMNS, "baseline": 0.01}, "dataset.preparation.baseline is 0.01"),
        ({"columns": COLUMNS, "baseline": ""}, "dataset.preparation.baseline is ''"),
        ({"columns": COLUMNS, "vwf_unit": "%"}, "dataset.preparation.vwf_unit is '%'; expected IU/dL or"),
        (
            {"columns": {**COLUMNS, "vwf_prophylaxis": "before"}},
            "columns.vwf_prophylaxis: has no effect without dataset.preparation.surgery=true",
        ),
        (
            {"columns": {**COLUMNS, "vwf_historic": "old"}, "impute": ["height"]},
            "columns.vwf_historic: has no effect without vwf in dataset.preparation.impute",
        ),
        (
            {"columns": {"height": "ht"}, "impute": ["weight"]},
            "dataset.preparation.impute: weight needs dataset.preparation.columns.age",
        ),
        ({"columns": {"age": None, "height": "ht"}, "impute": ["height"]}, "height needs .*columns.age"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Preparation.build(options)


def test_options_become_a_preparation() -> None:
    made = Preparation.build(
        {"columns": {**COLUMNS, "vwf_historic": None}, "impute": ["vwf"], "baseline": "b"}
    )
    assert made == Preparation(COLUMNS, ("vwf",), False, "b", "IU/dL")
