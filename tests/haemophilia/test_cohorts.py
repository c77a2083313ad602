"""Synthetic cohorts: same seed same bytes, sizes, regimens, missingness and laws as stated, levels against
scipy."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from scipy.integrate import solve_ivp

from medcm_cli.data import Format, read_events
from medcm_cli.errors import InputError
from medcm_cli.haemophilia import cohorts
from medcm_cli.haemophilia.cohorts import (
    FILES,
    TRUTHS,
    cohort_folder,
    made_cohort,
    truth_of,
    typical_parameters,
    write_cohort,
)
from medcm_cli.haemophilia.covariates import fat_free_mass
from medcm_cli.haemophilia.preparation import SURGERY, Preparation, check_baseline, prepare, subtract_baseline
from tests.helpers import ROOT, SHARED

KINDS = ["prophylaxis", "perioperative"]
N = 4000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cohorts")
    for kind in KINDS:
        write_cohort(folder / kind, kind, seed=1, n=N)
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module")
def events(large: dict[str, Path]) -> dict[str, pd.DataFrame]:
    return {kind: pd.read_csv(folder / "events.csv") for kind, folder in large.items()}


@pytest.fixture(scope="module")
def truths(large: dict[str, Path]) -> dict[str, pd.DataFrame]:
    return {kind: pd.read_parquet(folder / "truth.parquet") for kind, folder in large.items()}


def doses(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["evid"] == 1]


def samples(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["evid"] == 0]


def follow_up(rows: pd.DataFrame) -> pd.Series:
    return samples(rows).groupby("id", sort=False)["time"].max()


# -- the truth -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_what_was_published(kind: str) -> None:
    paths = [SHARED / "reference" / name for name in ("paper.yaml", "corrections.yaml")]
    if not all(path.is_file() for path in paths):
        pytest.skip("the published figures are not beside this checkout (../shared/reference)")
    paper, corrections = (yaml.safe_load(path.read_text()) for path in paths)
    typical = paper["real_world_typical"]
    estimate = {**paper["table3"][kind], **corrections["table3"].get(kind, {})}["vi"]
    ours = TRUTHS[kind]
    assert {name.lower(): value for name, value in ours.typical.items()} == typical[kind]
    assert (list(cohorts.FFM_GRID), list(cohorts.VWF_GRID)) == tuple(typical["effect_grid"].values())
    effects = {name.lower(): list(values) for name, values in ours.effects.items()}
    assert effects == typical[f"{kind}_effects"]
    assert ours.omega_sd == (estimate["omega_1"][0], estimate["omega_2"][0])
    assert ours.rho == estimate["rho"][0]
    assert ours.additive == pytest.approx(estimate["sigma_add"][0] / 100)  # IU/dL
    assert ours.proportional == estimate["sigma_prop"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_typical_parameters(kind: str) -> None:
    """The typical values at the reference; between the grid's points within them; beyond it its end."""
    truth = TRUTHS[kind]
    at_reference = typical_parameters(kind, np.array([60.0]), np.array([100.0]))
    assert {name: pytest.approx(value[0]) for name, value in at_reference.items()} == truth.typical
    ffm, vwf = np.array(cohorts.FFM_GRID), np.array(cohorts.VWF_GRID)
    got = typical_parameters(kind, ffm, vwf)
    # The published effects are 1 at the reference but for the spread of the fits and the grid.
    product = np.array(truth.effects["ffm_on_CL"]) * np.array(truth.effects["vwf_on_CL"])
    np.testing.assert_allclose(got["CL"] / truth.typical["CL"], product, rtol=0.02)
    np.testing.assert_allclose(got["CL"] / product, got["CL"][0] / product[0], rtol=1e-12)
    v1 = got["V1"] / np.array(truth.effects["ffm_on_V1"])
    np.testing.assert_allclose(v1, v1[0], rtol=1e-12)
    for name in ("Q", "V2"):
        np.testing.assert_array_equal(got[name], truth.typical[name])
    fine = typical_parameters(kind, np.linspace(0, 138.5, 400), np.full(400, 100.0))
    assert (np.diff(fine["CL"]) > 0).all()
    assert (np.diff(fine["V1"]) > 0).all()
    beyond = typical_parameters(kind, np.array([200.0, 138.5]), np.array([500.0, 323.1]))
    assert beyond["CL"][0] == beyond["CL"][1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_for_the_configuration(kind: str, large: dict[str, Path]) -> None:
    truth, estimate = truth_of(kind), TRUTHS[kind]
    assert truth["random_effects"] == ["CL", "V1"]
    omega = np.array(truth["omega"])
    np.testing.assert_allclose(np.sqrt(np.diag(omega)), estimate.omega_sd)
    assert omega[0, 1] == omega[1, 0] == pytest.approx(estimate.rho * math.prod(estimate.omega_sd))
    assert truth["sigma"] == {"additive": estimate.additive, "proportional": estimate.proportional}
    saved = json.loads((large[kind] / "truth.json").read_text())
    assert saved["synthetic"] is True
    assert saved["settings"] == {"kind": kind, "seed": 1, "n": N, "complete": False, "censor": False}
    assert saved["typical"] == estimate.typical
    assert {key: saved[key] for key in truth} == truth


@pytest.mark.parametrize("kind", KINDS)
def test_random_effects_and_individual_parameters(kind: str, truths: dict[str, pd.DataFrame]) -> None:
    truth = truths[kind]
    eta, omega = truth[["eta_CL", "eta_V1"]].to_numpy(), np.array(truth_of(kind)["omega"])
    variance = np.diag(omega)
    assert (np.abs(eta.mean(0)) < 4.5 * np.sqrt(variance / N)).all()
    error = np.sqrt((np.outer(variance, variance) + omega**2) / N)
    assert (np.abs(np.cov(eta.T) - omega) < 4.5 * error).all()
    ffm = fat_free_mass(*(truth[name].to_numpy() for name in ("age", "weight", "height")))
    np.testing.assert_allclose(truth["ffm"], ffm)
    zeta = typical_parameters(kind, ffm, truth["vwf"].to_numpy())
    for name in ("CL", "V1"):
        np.testing.assert_allclose(truth[name], zeta[name] * np.exp(truth[f"eta_{name}"]))
    for name in ("Q", "V2"):
        np.testing.assert_array_equal(truth[name], zeta[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subject", [1, 2, 3, 1234, 3999])  # 1234 and 3999: of another part of the levels
def test_true_levels_equal_scipy(
    kind: str, subject: int, events: dict[str, pd.DataFrame], truths: dict[str, pd.DataFrame]
) -> None:
    """The two-compartment equations, integrated from one change of the infusion rate to the next."""
    name = f"synthetic_{subject}"
    rows = events[kind][events[kind]["id"] == name]
    truth = truths[kind].set_index("id").loc[name]
    dosing, levels = doses(rows), samples(rows)
    k10, k12, k21 = truth["CL"] / truth["V1"], truth["Q"] / truth["V1"], truth["Q"] / truth["V2"]
    start = dosing["time"].to_numpy()
    end = start + dosing["duration"].to_numpy()
    edges = np.unique(np.r_[0.0, start, end, levels["time"]])
    amounts, central = np.zeros(2), {0.0: 0.0}
    for left, right in itertools.pairwise(edges):
        running = (start <= left) & (left < end)
        rate = float(dosing["rate"].to_numpy()[running].sum())

        def change(t: float, a: np.ndarray, rate: float = rate) -> list[float]:
            del t
            return [rate - (k10 + k12) * a[0] + k21 * a[1], k12 * a[0] - k21 * a[1]]

        amounts = solve_ivp(change, (left, right), amounts, method="LSODA", rtol=1e-10, atol=1e-8).y[:, -1]
        central[float(right)] = amounts[0]
    expected = [central[float(time)] / truth["V1"] / 1000 for time in levels["time"]]
    np.testing.assert_allclose(levels["ipred"], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_error_is_combined(kind: str, events: dict[str, pd.DataFrame]) -> None:
    """What is left of a level after the true one and the baseline: of sd sigma_add + sigma_prop f, no
    floor."""
    levels, truth = samples(events[kind]), TRUTHS[kind]
    sd = truth.additive + truth.proportional * levels["ipred"]
    score = (levels["dv"] - levels["baseline"] - levels["ipred"]) / sd
    assert stats.kstest(score, stats.norm.cdf).pvalue > 1e-3
    for part in (levels["ipred"] < 0.1, levels["ipred"] > 0.8):
        assert stats.kstest(score[part], stats.norm.cdf).pvalue > 1e-3
    assert (levels["dv"] < 0).any()


# -- the cohorts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "size"), [("prophylaxis", 69), ("perioperative", 66)])
def test_the_default_cohort_has_the_published_size_and_missingness(
    tmp_path: Path, kind: str, size: int
) -> None:
    folder = made_cohort(tmp_path, kind)
    assert folder == cohort_folder(tmp_path, kind) == tmp_path / "data" / f"synthetic_{kind}"
    rows = pd.read_csv(folder / "events.csv")
    assert rows["id"].unique().tolist() == [f"synthetic_{number}" for number in range(1, size + 1)]
    known = rows.groupby("id")[["age", "ht", "wt", "bgo", "vwf", "baseline"]].count() > 0
    share = (100 * (1 - known.mean())).round(1)
    assert share[["age", "bgo", "baseline"]].tolist() == [0, 0, 0]
    published = {"vwf": 65.2, "wt": 1.4, "ht": 4.3}  # %
    if kind == "prophylaxis":
        assert share[list(published)].to_dict() == published
        assert abs(follow_up(rows).median() - 44) < 5
    else:
        assert (rows["wt"].isna().sum(), rows["ht"].isna().sum()) == (0, 0)
        assert abs(follow_up(rows).median() - 144) < 25


def test_prophylaxis_is_one_dose_and_about_three_samples(events: dict[str, pd.DataFrame]) -> None:
    rows = events["prophylaxis"]
    dosing, levels = doses(rows), samples(rows)
    assert len(dosing) == N
    assert dosing["id"].nunique() == N
    assert (dosing["time"] == 0).all()
    np.testing.assert_allclose(dosing["duration"], 1 / 60)
    np.testing.assert_allclose(dosing["rate"] * dosing["duration"], dosing["amt"])
    assert ((dosing["amt"] % 250 == 0) & (dosing["amt"] >= 250)).all()
    known = dosing.dropna(subset="wt")  # 25-50 IU/kg, but for the rounding
    assert (known["amt"] >= np.maximum(25 * known["wt"] - 125, 250)).all()
    assert (known["amt"] <= np.maximum(50 * known["wt"] + 125, 250)).all()
    adults = known[known["wt"] > 60]
    per_kg = adults["amt"] / adults["wt"]
    assert abs(per_kg.mean() - 37.5) < 4.5 * per_kg.std() / math.sqrt(len(adults))
    count = levels.groupby("id").size()
    assert set(count) == {2, 3, 4}
    assert 2.9 < count.mean() < 3.1
    # 4, 24 and 48 h: samples cluster there, and there is none before the dose is in.
    assert levels["time"].min() > 0
    near = np.array([(abs(levels["time"] - hour) < 9).sum() for hour in (4, 24, 48)]) / N
    assert (near > 0.7).all()
    assert abs(follow_up(rows).median() - 44) < 0.5


def test_surgery_is_a_loading_dose_then_boluses_or_an_infusion_that_decrease(
    events: dict[str, pd.DataFrame], truths: dict[str, pd.DataFrame]
) -> None:
    rows = events["perioperative"]
    rows = rows.assign(weight=rows["id"].map(truths["perioperative"].set_index("id")["weight"]))
    dosing = doses(rows)
    loading = dosing.groupby("id", sort=False).nth(0)
    assert len(loading) == N
    assert (loading["time"] == 0).all()
    assert (loading["amt"] <= np.maximum(50 * loading["weight"] + 125, 250)).all()
    assert (loading["amt"] >= np.maximum(35 * loading["weight"] - 125, 250)).all()
    np.testing.assert_allclose(dosing["rate"] * dosing["duration"], dosing["amt"])
    later = dosing.drop(loading.index)
    at_once = np.isclose(later["duration"], 1 / 60, rtol=1e-9)
    infusion, bolus = later[~at_once], later[at_once]
    assert abs(infusion["id"].nunique() / N - 0.5) < 4.5 * math.sqrt(0.25 / N)
    assert (infusion["duration"] <= 24 + 1e-9).all()
    assert (bolus["amt"] % 250 == 0).all()
    # Records of an infusion follow each other without a gap, at rates that fall to one half at least.
    step = infusion.groupby("id", sort=False)
    following = infusion["time"] - (infusion["time"] + infusion["duration"]).groupby(infusion["id"]).shift()
    np.testing.assert_allclose(following.dropna(), 0, atol=1e-9)
    ratio = (infusion["rate"] / step["rate"].shift()).dropna()
    assert (ratio <= 1 + 1e-9).all()
    np.testing.assert_allclose(ratio[infusion["time"] < 100], 0.9, rtol=1e-9)
    assert (infusion["rate"] / step["rate"].transform("first") >= 0.5 - 1e-9).all()
    # Boluses come every 12 h, then every 24 h, and get smaller, to the nearest vial.
    gap = bolus["time"].groupby(bolus["id"]).diff()
    early, late = gap[bolus["time"] < 73].dropna(), gap[bolus["time"] > 90].dropna()
    assert early.between(11, 13).all()
    assert late.between(23, 25).all()
    assert (bolus["amt"].groupby(bolus["id"]).diff().dropna() <= 0).all()
    # No bolus while an infusion runs.
    stop = bolus["id"].map((infusion["time"] + infusion["duration"]).groupby(infusion["id"]).max())
    assert (bolus["time"] > stop.fillna(0)).all()


def test_surgery_is_followed_by_about_a_sample_a_day(events: dict[str, pd.DataFrame]) -> None:
    rows = events["perioperative"]
    levels = samples(rows)
    last = follow_up(rows)
    assert abs(last.median() - 144) < 4.5 * 144 * 1.2533 * 0.35 / math.sqrt(N)
    assert last.between(48, 330).all()
    assert (doses(rows).groupby("id", sort=False)["time"].max() < last).all()
    per_day = levels.groupby("id", sort=False).size() / (last / 24)
    assert 1.0 < per_day.median() < 1.6
    # A quarter of the patients have few samples, half of these none of the loading dose's peak.
    first = levels.groupby("id", sort=False)["time"].min()
    late = first > 0.5
    assert abs(late.mean() - 0.25 * 0.5) < 4.5 * math.sqrt(0.125 * 0.875 / N)
    assert per_day[late].median() < 0.5 < 1.1 < per_day[~late].median()
    assert abs((per_day < 0.75).mean() - 0.25) < 0.06
    gap = levels["time"].groupby(levels["id"]).diff().dropna()
    assert (gap > 0).all()
    dense = levels["id"].map(per_day) > 0.9
    assert gap[dense].quantile(0.99) < 60
    # Troughs and peaks: within an hour before or after a bolus.
    bolus = doses(rows)
    bolus = bolus[(bolus["duration"] < 0.02) & (bolus["time"] > 0)]
    merged = levels.merge(bolus[["id", "time"]], on="id", suffixes=("", "_dose"))
    since = merged["time"] - merged["time_dose"]
    trough, peak = merged[since.between(-0.85, 0)], merged[since.between(0.2, 1)]
    assert len(trough) > N
    assert len(peak) > N / 2
    assert trough["ipred"].median() < 0.75 * peak["ipred"].median()


def test_vwf_rises_around_surgery(events: dict[str, pd.DataFrame], truths: dict[str, pd.DataFrame]) -> None:
    rows, truth = events["perioperative"], truths["perioperative"].set_index("id")
    per_subject = rows.groupby("id")["vwf"]
    mean = per_subject.mean().dropna()
    np.testing.assert_allclose(mean, truth["vwf"].loc[mean.index])  # what the parameters follow
    assert per_subject.nunique().loc[mean.index].median() >= 5  # it changes in time
    before = rows.groupby("id")["vwf_prophylaxis"].first()
    ratio = (mean / before).dropna()
    assert abs(math.exp(np.log(ratio).mean()) - SURGERY) < 0.02
    known = rows.dropna(subset="vwf")
    assert (known["evid"] == 0).all()
    early, late = (
        known[part].groupby("id")["vwf"].mean() for part in (known["time"] < 30, known["time"] > 100)
    )
    assert abs((early / late).mean() - 1) > 0.05
    assert abs(mean.size / N - 0.8) < 1e-9
    never = before[per_subject.count() == 0].isna()
    assert abs(never.mean() - 0.5) < 4.5 * math.sqrt(0.25 / len(never))


def test_prophylaxis_covariates(events: dict[str, pd.DataFrame], truths: dict[str, pd.DataFrame]) -> None:
    first = events["prophylaxis"].groupby("id", sort=False).first()
    truth = truths["prophylaxis"].set_index("id")
    for column, name in (("age", "age"), ("ht", "height"), ("wt", "weight"), ("vwf", "vwf")):
        known = first[column].dropna()
        np.testing.assert_array_equal(known, truth[name].loc[known.index])
    np.testing.assert_array_equal(first["bgo"], truth["blood_group_o"])
    missing = first[["vwf", "wt", "ht"]].isna()
    assert missing.sum().tolist() == [round(share * N) for share in (0.652, 0.014, 0.043)]
    # Missing at random: neither by the truth nor by each other.
    shared = np.corrcoef(np.c_[missing.astype(float), truth[["age", "vwf", "eta_CL"]]].T) - np.eye(6)
    assert np.abs(shared[:3]).max() < 4.5 / math.sqrt(N)
    historic = first["vwf_hist"].dropna()
    assert missing["vwf"].loc[historic.index].all()
    score = np.log(historic / truth["vwf"].loc[historic.index]) / 0.2
    assert stats.kstest(score, stats.norm.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_baselines(kind: str, events: dict[str, pd.DataFrame], truths: dict[str, pd.DataFrame]) -> None:
    per_subject = events[kind].groupby("id", sort=False)["baseline"]
    for value in (per_subject.min(), per_subject.max()):  # the same in every row
        np.testing.assert_array_equal(value, truths[kind]["baseline"])
    baseline = truths[kind]["baseline"]
    assert baseline.between(0, 0.05).all()
    assert abs((baseline < 0.01).mean() - 0.7) < 4.5 * math.sqrt(0.21 / N)


@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_cohort_lacks_nothing_and_is_otherwise_the_same(tmp_path: Path, kind: str) -> None:
    for name, complete in (("part", False), ("full", True)):
        write_cohort(tmp_path / name, kind, seed=5, complete=complete)
    part, full = (pd.read_csv(tmp_path / name / "events.csv") for name in ("part", "full"))
    per_subject = full.groupby("id", sort=False)[["age", "ht", "wt", "bgo", "vwf"]]
    assert (per_subject.count() > 0).all(axis=None)
    truth = pd.read_parquet(tmp_path / "full" / "truth.parquet")
    np.testing.assert_allclose(per_subject.mean()["vwf"], truth["vwf"])
    same = ["id", "time", "evid", "amt", "duration", "dv", "ipred", "baseline"]
    pd.testing.assert_frame_equal(part[same], full[same])
    pd.testing.assert_frame_equal(truth, pd.read_parquet(tmp_path / "part" / "truth.parquet"))


def test_levels_below_the_limit_can_be_censored(tmp_path: Path) -> None:
    for name, censor in (("drawn", False), ("censored", True)):
        write_cohort(tmp_path / name, "prophylaxis", seed=5, n=500, censor=censor)
    drawn, censored = (pd.read_csv(tmp_path / name / "events.csv") for name in ("drawn", "censored"))
    below = (drawn["dv"] < 0.01).to_numpy()
    assert 5 < below.sum() < 500
    np.testing.assert_array_equal(censored["cens"] == 1, below)
    np.testing.assert_array_equal(censored["dv"], np.where(below, 0.01, drawn["dv"]))
    assert (samples(censored)["lloq"] == 0.01).all()
    table = read_events(tmp_path / "censored" / "events.csv", {})
    assert table.censored.sum() == below.sum()
    assert not read_events(tmp_path / "drawn" / "events.csv", {}).censored.any()


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        write_cohort(tmp_path / name, kind, seed=seed, n=20)
    assert {path.name for path in (tmp_path / "first").iterdir()} == set(FILES)
    for name in FILES:
        first, second, other = ((tmp_path / f / name).read_bytes() for f in ("first", "second", "other"))
        assert first == second
        assert first != other


def test_the_two_kinds_share_no_random_numbers(
    truths: dict[str, pd.DataFrame],
) -> None:
    first, second = (truths[kind]["age"] for kind in KINDS)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / math.sqrt(N)


def test_a_cohort_that_is_there_stays_and_one_that_is_not_whole_is_made_again(tmp_path: Path) -> None:
    folder = cohort_folder(tmp_path, "prophylaxis")
    write_cohort(folder, "prophylaxis", seed=8, n=3)
    before = (folder / "events.csv").read_bytes()
    assert made_cohort(tmp_path, "prophylaxis") == folder
    assert (folder / "events.csv").read_bytes() == before
    (folder / "truth.json").unlink()
    made_cohort(tmp_path, "prophylaxis")
    assert json.loads((folder / "truth.json").read_text())["settings"]["n"] == 69


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cohort(tmp_path / "cohort", "prophylaxis", n=3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "cohort").iterdir()}

    def full_disk(target: Path, text: str) -> None:
        raise OSError(f"No space left on device: {target}, {len(text)} characters")

    monkeypatch.setattr(cohorts, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_cohort(tmp_path / "cohort", "prophylaxis", n=4)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "cohort").iterdir()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "surgery"}, "synthetic cohort is 'surgery'; expected prophylaxis or perioperative"),
        ({"kind": "prophylaxis", "n": 0}, "n is 0; expected a whole number from 1"),
        ({"kind": "prophylaxis", "seed": -1}, "seed is -1; expected a whole number from 0"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, options: dict[str, int | str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        write_cohort(tmp_path / "cohort", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_other_functions_refuse_an_unknown_kind(tmp_path: Path) -> None:
    for call in (
        truth_of,
        lambda kind: cohort_folder(tmp_path, kind),
        lambda kind: made_cohort(tmp_path, kind),
    ):
        with pytest.raises(InputError, match="synthetic cohort is 'x'; expected"):
            call("x")


# -- from the file to what a model needs, by the configuration of each data set --------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("complete", [False, True])
def test_the_configuration_prepares_the_cohort(tmp_path: Path, kind: str, complete: bool) -> None:
    write_cohort(tmp_path / "cohort", kind, seed=2, complete=complete)
    config = yaml.safe_load((ROOT / "conf" / "dataset" / f"{kind}.yaml").read_text())
    assert config["name"] == config["cohort"] == kind
    steps = Preparation.build(config["preparation"])
    path = tmp_path / "cohort" / config["events"]
    names = frozenset({*steps.columns, "baseline"})
    how = Format(over_time=config.get("over_time", {}), optional=names)
    table = read_events(path, {**steps.columns, "baseline": str(steps.baseline)}, how)
    raw = {name: table.covariates[name] for name in steps.columns}
    got = prepare(raw, steps, table.ids, table.source).need(["ffm", "vwf"], table.ids, table.source)
    truth = pd.read_parquet(tmp_path / "cohort" / "truth.parquet")
    assert table.ids == tuple(truth["id"])
    off = {name: np.abs(np.log(got[name] / truth[name])).to_numpy() for name in got}
    if complete:
        assert max(values.max() for values in off.values()) < 1e-12
    else:
        assert off["ffm"].max() < 0.5
        assert 0.02 < off["vwf"].mean() < 0.5
    baseline = check_baseline(table.covariates["baseline"], "baseline", table.ids, table.source)
    np.testing.assert_array_equal(baseline, truth["baseline"])
    dv = subtract_baseline(table.dv, table.subject, baseline)[~table.is_dose]
    level = samples(pd.read_csv(path))["ipred"]
    error = TRUTHS[kind].additive + TRUTHS[kind].proportional * level
    assert abs(((dv - level) / error).mean()) < 4.5 / math.sqrt(len(dv))
