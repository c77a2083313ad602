"""The covariate graph against its published tables, the LMS formula and scipy's distributions."""

from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from medcm_cli.haemophilia.covariates import (
    Covariates,
    bmi,
    draw_covariates,
    fat_free_mass,
    height_mode,
    truncated_normal,
    vwf_mode,
    weight_given_height,
    weight_median,
)
from tests.helpers import SHARED


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """The published covariate model."""
    path = SHARED / "reference" / "covariate_model_corrected.yaml"
    if not path.is_file():
        pytest.skip("the covariate model is not beside this checkout (../shared/reference)")
    model = yaml.safe_load(path.read_text())
    assert isinstance(model, dict)
    return model


class Fixed:
    """In place of a generator: every normal number is ``z``, every uniform one is ``u``, and the ages are
    given."""

    def __init__(self, age: list[float], z: float = 0.0, u: float = 0.5) -> None:
        self.age, self.z, self.u = np.asarray(age, dtype=np.float64), z, u

    def uniform(self, low: float, high: float, n: int) -> np.ndarray:
        assert low <= self.age.min() <= self.age.max() <= high
        assert n == len(self.age)
        return self.age

    def standard_normal(self, n: int) -> np.ndarray:
        return np.full(n, self.z)

    def random(self, n: int) -> np.ndarray:
        return np.full(n, self.u)


def fixed(age: list[float], z: float = 0.0, u: float = 0.5) -> Covariates:
    return draw_covariates(len(age), Fixed(age, z, u))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def many() -> Covariates:
    return draw_covariates(50_000, np.random.default_rng(5))


# -- the published tables --------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-2.0, -1.0, 0.0, 1.0, 2.5])
def test_height_at_the_ages_of_the_table(reference: dict[str, Any], z: float) -> None:
    table = reference["height_given_age"]
    expected = np.array(table["mean"]) + z * np.array(table["sd"])
    np.testing.assert_allclose(fixed(table["age"], z).height, expected, rtol=1e-12)


@pytest.mark.parametrize("z", [-3.0, -1.0, 0.0, 1.0, 3.0])
def test_weight_at_the_heights_of_the_table(reference: dict[str, Any], z: float) -> None:
    table = reference["weight_given_height"]
    power, median, spread = (np.array(table[name]) for name in "LMS")
    expected = median * (1 + power * spread * z) ** (1 / power)
    height = np.array(table["height"], dtype=np.float64)
    np.testing.assert_allclose(weight_given_height(height, np.full_like(height, z)), expected, rtol=1e-12)


@pytest.mark.parametrize(("age", "older_than_40"), [(1.0, 40.0), (40.0, 40.0), (62.5, 62.5), (85.0, 85.0)])
@pytest.mark.parametrize("z", [-1.5, 0.0, 2.0])
def test_vwf_given_age_and_blood_group(
    reference: dict[str, Any], age: float, older_than_40: float, z: float
) -> None:
    vwf = reference["vwf_ag"]
    expected = np.exp(vwf["mu"] + z * vwf["sigma"]) * np.exp(vwf["a"] + vwf["b"] * older_than_40 / 45)
    share = reference["blood_group_o"]
    other, group_o = fixed([age], z, share + 1e-9), fixed([age], z, share - 1e-9)
    assert (other.blood_group_o.tolist(), group_o.blood_group_o.tolist()) == ([0], [1])
    np.testing.assert_allclose(other.vwf, expected, rtol=1e-12)
    np.testing.assert_allclose(group_o.vwf, expected * vwf["c"], rtol=1e-12)


# -- between and beyond the tables' points ---------------------------------------------------------


def test_height_has_no_overshoot_between_the_ages_of_the_table(reference: dict[str, Any]) -> None:
    """A monotone cubic stays between neighbouring points; an ordinary spline would not."""
    table = reference["height_given_age"]
    for z in (0.0, 1.0):
        knots = fixed(table["age"], z).height
        mean = np.array(table["mean"])
        for left in range(len(knots) - 1):
            ages = np.linspace(table["age"][left], table["age"][left + 1], 21)
            heights = fixed(list(ages), 0.0).height
            low, high = sorted((mean[left], mean[left + 1]))
            assert (heights >= low - 1e-9).all()
            assert (heights <= high + 1e-9).all()


def test_heights_beyond_the_weight_table_count_as_its_ends() -> None:
    z = np.array([-1.0, 0.0, 2.0])
    for beyond, end in ((50.0, 70.0), (69.9, 70.0), (200.1, 200.0), (230.0, 200.0)):
        got, expected = (weight_given_height(np.full(3, height), z) for height in (beyond, end))
        np.testing.assert_array_equal(got, expected)


def test_weight_rises_with_its_score_and_with_height() -> None:
    z = np.linspace(-3, 3, 61)
    heights = np.linspace(60, 210, 151)
    weights = np.stack([weight_given_height(heights, np.full_like(heights, score)) for score in z])
    assert np.isfinite(weights).all()
    assert (weights > 0).all()
    assert (np.diff(weights, axis=0) > 0).all()
    inside = (heights >= 70) & (heights <= 200)
    assert (np.diff(weights[:, inside][30:31], axis=1) > 0).all()  # the median


# -- draws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(-3.0, 3.0), (-0.5, 0.25), (-8 / 3, np.inf), (1.5, 4.0)])
def test_truncated_normal_equals_scipy(low: float, high: float) -> None:
    drawn = truncated_normal(20_000, low, high, np.random.default_rng(11))
    assert drawn.shape == (20_000,)
    assert drawn.min() >= low
    assert drawn.max() <= high
    assert stats.kstest(drawn, stats.truncnorm(low, high).cdf).pvalue > 1e-3


def test_weight_scores_are_standard_normal_within_3(many: Covariates) -> None:
    """The score of each weight, found by bisection of its monotone formula."""
    low, high = np.full(50_000, -3.5), np.full(50_000, 3.5)
    for _ in range(45):
        middle = (low + high) / 2
        below = weight_given_height(many.height, middle) < many.weight
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    assert low.min() > -3 - 1e-6
    assert high.max() < 3 + 1e-6
    assert stats.kstest(low, stats.truncnorm(-3, 3).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(low, many.age)[0, 1]) < 4.5 / np.sqrt(50_000)


def test_age_is_uniform_and_blood_group_has_its_share(many: Covariates) -> None:
    assert stats.kstest(many.age, stats.uniform(1, 84).cdf).pvalue > 1e-3
    assert set(many.blood_group_o.tolist()) == {0, 1}
    assert abs(many.blood_group_o.mean() - 0.45) < 4.5 * np.sqrt(0.45 * 0.55 / 50_000)


def test_height_and_vwf_have_their_distributions(many: Covariates) -> None:
    """docs/methods.md, "Covariates": standardised by their parents, both are normal."""
    ages = list(many.age)
    mean, sd = fixed(ages).height, fixed(ages, 1.0).height - fixed(ages).height
    height = (many.height - mean) / sd
    typical = np.exp(4.11 + 0.5152 * np.maximum(many.age, 40) / 45) * 0.700869**many.blood_group_o
    vwf = (np.log(many.vwf / typical) - 0.157888) / 0.347819
    for score in (height, vwf):
        assert stats.kstest(score, stats.norm.cdf).pvalue > 1e-3
    scores = np.stack([height, vwf, many.age, many.blood_group_o])
    correlation = np.corrcoef(scores) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(50_000)


def test_the_same_generator_gives_the_same_patients() -> None:
    first, second, other = (draw_covariates(20, np.random.default_rng(seed)) for seed in (1, 1, 2))
    for name in ("age", "height", "weight", "blood_group_o", "vwf"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


# -- conditional modes -----------------------------------------------------------------------------


def test_weight_is_imputed_by_its_published_median(reference: dict[str, Any]) -> None:
    """To the digit that is published; and the median of draws."""
    assert reference["weight_given_height"]["imputation"].startswith("median")
    check = reference["weight_given_height"]["check"]
    heights = np.array(check["height"], dtype=np.float64)
    np.testing.assert_allclose(weight_median(heights), check["median"], rtol=0.01)
    z = truncated_normal(100_001, -3, 3, np.random.default_rng(2))
    drawn = weight_given_height(np.full_like(z, 176.0), z)
    assert float(weight_median(np.array([176.0]))[0]) == pytest.approx(float(np.median(drawn)), rel=0.005)


@pytest.mark.parametrize(("name", "score"), [("q2_5", -1.96), ("q97_5", 1.96)])
def test_quantiles_of_weight_are_the_published_ones(
    reference: dict[str, Any], name: str, score: float
) -> None:
    check = reference["weight_given_height"]["check"]
    heights = np.array(check["height"], dtype=np.float64)
    found = weight_given_height(heights, np.full_like(heights, score))
    np.testing.assert_allclose(found, check[name], rtol=0.03)


@pytest.mark.parametrize("age", [1.0, 33.0, 40.0, 61.0, 85.0])
@pytest.mark.parametrize("group", [0.0, 1.0, np.nan])
def test_the_mode_of_vwf_is_where_its_density_is_highest(
    reference: dict[str, Any], age: float, group: float
) -> None:
    vwf, share = reference["vwf_ag"], reference["blood_group_o"]
    scale = np.exp(vwf["mu"] + vwf["a"] + vwf["b"] * max(age, 40) / 45)
    other, group_o = (stats.lognorm(vwf["sigma"], scale=scale * factor) for factor in (1, vwf["c"]))
    x = np.linspace(20, 400, 1_000_001)
    of_o = share if np.isnan(group) else group
    density = of_o * group_o.pdf(x) + (1 - of_o) * other.pdf(x)
    mode = vwf_mode(np.array([age]), np.array([group]))
    np.testing.assert_allclose(mode, x[int(np.argmax(density))], rtol=2e-4)


def test_modes_are_vectors_and_ages_beyond_the_graph_count_as_its_ends(reference: dict[str, Any]) -> None:
    table = reference["height_given_age"]
    np.testing.assert_allclose(height_mode(np.array(table["age"], dtype=float)), table["mean"], rtol=1e-12)
    np.testing.assert_allclose(height_mode(np.array([0.2, 101.0])), [table["mean"][0], table["mean"][-1]])
    group = np.array([0.0, 1.0, np.nan])
    ages = np.array([40.0, 62.5, 85.0])
    alone = [float(vwf_mode(ages[i : i + 1], group[i : i + 1])[0]) for i in range(3)]
    np.testing.assert_array_equal(vwf_mode(ages, group), alone)
    np.testing.assert_array_equal(vwf_mode(np.full(3, 100.0), group), vwf_mode(np.full(3, 85.0), group))


# -- body size -------------------------------------------------------------------------------------


def test_fat_free_mass_by_hand() -> None:
    """80 kg and 180 cm: BMI 24.6914, 9270 x 80 / (6680 + 216 x 24.6914) = 741600 / 12013.33 = 61.7314 kg for
    an adult. At 13.4 y the maturation is 0.88 + 0.12 / 2, at birth 0.88."""
    age, weight, height = (
        np.array([40.0, 13.4, 13.4, 0.0]),
        np.array([80.0, 80, 45, 3.5]),
        np.array([180.0, 180, 160, 50]),
    )
    expected = [
        61.7314,
        0.94 * 61.7314,
        0.94 * 417150 / (6680 + 216 * 17.578125),
        0.88 * 32445 / (6680 + 216 * 14),
    ]
    np.testing.assert_allclose(fat_free_mass(age, weight, height), expected, rtol=1e-6)
    np.testing.assert_allclose(bmi(weight, height), [24.691358, 24.691358, 17.578125, 14.0], rtol=1e-7)
    # 10 y: (10 / 13.4)^-12.7 = exp(12.7 x 0.2926696) = 41.1305, so 0.88 + 0.12 / 42.1305 = 0.8828483.
    (child,) = fat_free_mass(np.array([10.0]), np.array([32.0]), np.array([140.0]))
    assert child == pytest.approx(0.8828483 * 296640 / (6680 + 216 * 16.3265306), rel=1e-6)
