"""Synthetic stand-ins for the two cohorts of patients whose data are not public: haemophilia A patients on
prophylaxis, and the same around surgery (METHODS, "Protocol: real data").

Typical values, covariate effects, Omega and the combined error are those that Janssen et al. (2024, J
Pharmacokinet Pharmacodyn 51:797-808, doi 10.1007/s10928-024-09931-w) estimated by variational inference; the
numbers of patients, doses and samples, the follow-up and what is missing are theirs too. Where they report
nothing, the constants below are assumptions, and say so.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from scipy.interpolate import PchipInterpolator

from medcm_cli.checks import one_of, whole
from medcm_cli.data.events import BOLUS_DURATION
from medcm_cli.data.sheet import BoolArray, FloatArray
from medcm_cli.files import replaced, write_text
from medcm_cli.haemophilia.covariates import Covariates, draw_covariates, fat_free_mass, truncated_normal
from medcm_cli.haemophilia.virtual import levels

FILES = ("events.csv", "truth.parquet", "truth.json")
FFM_REFERENCE, VWF_REFERENCE = 60.0, 100.0  # kg, IU/dL
LLOQ = 0.01  # IU/mL
VIAL = 250.0  # IU


@dataclass(frozen=True)
class Truth:
    """Population truth: ``typical`` CL and Q (L/h), V1 and V2 (L) at the reference covariates; ``effects``
    relative to these on the grids below; ``omega_sd`` of (eta_CL, eta_V1) and their correlation ``rho``;
    ``additive`` sigma IU/mL, ``proportional`` sigma."""

    subjects: int
    typical: dict[str, float]
    effects: dict[str, tuple[float, ...]]
    omega_sd: tuple[float, float]
    rho: float
    additive: float
    proportional: float


# Medians over 60 published fits: their learned functions, and the population estimates of Table 3.
FFM_GRID = (0.0, 15.4, 30.8, 46.2, 61.5, 76.9, 92.3, 107.7, 123.1, 138.5)  # kg
VWF_GRID = (0.0, 35.9, 71.8, 107.7, 143.6, 179.5, 215.4, 251.3, 287.2, 323.1)  # IU/dL
TRUTHS = {
    "prophylaxis": Truth(
        subjects=69,
        typical={"CL": 0.226, "V1": 2.69, "Q": 0.139, "V2": 0.694},
        effects={
            "ffm_on_CL": (0.261, 0.349, 0.517, 0.749, 1.030, 1.349, 1.686, 2.014, 2.375, 2.751),
            "ffm_on_V1": (0.171, 0.275, 0.497, 0.757, 1.028, 1.316, 1.598, 1.892, 2.182, 2.476),
            "vwf_on_CL": (1.567, 1.335, 1.136, 0.966, 0.824, 0.704, 0.600, 0.510, 0.434, 0.368),
        },
        omega_sd=(0.282, 0.160),
        rho=0.718,
        additive=0.0289,
        proportional=0.094,
    ),
    "perioperative": Truth(
        subjects=66,
        typical={"CL": 0.200, "V1": 2.95, "Q": 0.140, "V2": 1.483},
        effects={
            "ffm_on_CL": (0.459, 0.500, 0.605, 0.793, 1.026, 1.312, 1.628, 1.965, 2.317, 2.683),
            "ffm_on_V1": (0.345, 0.374, 0.513, 0.747, 1.030, 1.342, 1.662, 1.986, 2.307, 2.638),
            "vwf_on_CL": (1.392, 1.240, 1.100, 0.974, 0.861, 0.761, 0.672, 0.592, 0.523, 0.460),
        },
        omega_sd=(0.322, 0.179),
        rho=0.590,
        additive=0.0253,
        proportional=0.164,
    ),
}

# Prophylaxis. Samples near 4, 24 and 48 h; the mean of the last is what gives a median follow-up of 44 h.
# Assumed: that 15 % have no last sample, and 15 % one more, near 10 h.
PROPHYLAXIS_SAMPLES = (
    (4.0, 1.5, 1.0),
    (10.0, 1.5, 0.15),
    (24.0, 3.0, 1.0),
    (45.0, 5.0, 0.85),
)  # mean, sd, share
DOSE_PER_KG = (25.0, 50.0)  # IU/kg
MISSING = {"vwf": 0.652, "weight": 0.014, "height": 0.043}  # shares
HISTORIC = 1 / 3  # of those without VWF:Ag have a historic value: assumed
HISTORIC_SD = 0.2  # of the log of VWF:Ag from one setting to another: assumed

# Surgery. All assumed but for the median follow-up and the factor between the two settings.
FOLLOW_UP, FOLLOW_UP_SD, FOLLOW_UP_RANGE = 144.0, 0.35, (48.0, 330.0)  # h: median, sd of the log, clipped to
LOADING_PER_KG = (35.0, 50.0)  # IU/kg at time 0
INFUSED = 0.5  # share with a continuous infusion, until ...
INFUSED_UNTIL = (72.0, 168.0)  # h, boluses from then on
INFUSION_PER_KG = (2.0, 3.5)  # IU/kg/h on the first day
BOLUS_PER_KG = (20.0, 30.0)  # IU/kg on the first day; every 12 h for three days, then every 24 h
DECREASE, LEAST = 0.9, 0.5  # of infusions and boluses: per day, and how far
DAILY, PEAK = 0.9, 0.3  # share of the days with a sample (a trough where boluses are given), and with a peak
NO_VWF, NO_VWF_EVER = 0.2, 0.5  # share without VWF:Ag around surgery; of these, without any
# VWF:Ag rises by so much, relative, with this time constant (h): the mean of the samples is 1.3 times the
# value on prophylaxis.
VWF_RISE, VWF_RISE_TIME = 0.35, 36.0
VWF_SD = 0.1  # of the log of VWF:Ag, from sample to sample

# Level before the first dose, IU/mL: severe and moderate haemophilia A; shares and uniform laws assumed.
SEVERE, SEVERE_BASELINE, MODERATE_BASELINE = 0.7, (0.0, 0.01), (0.01, 0.05)

_SUBJECTS_AT_A_TIME = 2000  # in the prediction of levels, to bound memory


@dataclass(frozen=True)
class _Regimen:
    """Doses (E, n): ``start`` and ``duration`` h, ``amount`` IU, 0 where there is none. Samples (T, n):
    ``time`` h, ``taken``, and ``vwf``, what is measured with them, NaN where nothing is."""

    start: FloatArray
    duration: FloatArray
    amount: FloatArray
    time: FloatArray
    taken: BoolArray
    vwf: FloatArray


def typical_parameters(kind: str, ffm: FloatArray, vwf: FloatArray) -> dict[str, FloatArray]:
    """True zeta (L/h, L) at fat-free mass (kg) and VWF:Ag (IU/dL): monotone cubics through the effects of the
    grids, 1 at the reference; beyond a grid its end counts."""
    truth = _truth(kind)
    zeta = {name: np.full(np.shape(ffm), value) for name, value in truth.typical.items()}
    for effect, values in truth.effects.items():
        covariate, parameter = effect.split("_on_")
        x, grid, reference = (
            (ffm, FFM_GRID, FFM_REFERENCE) if covariate == "ffm" else (vwf, VWF_GRID, VWF_REFERENCE)
        )
        curve = PchipInterpolator(np.array(grid), np.array(values))
        zeta[parameter] = zeta[parameter] * curve(np.clip(x, grid[0], grid[-1])) / curve(reference)
    return zeta


def truth_of(kind: str) -> dict[str, Any]:
    """What a synthetic cohort was drawn from, as ``dataset.truth`` of a configuration has it."""
    truth = _truth(kind)
    return {
        "random_effects": ["CL", "V1"],
        "omega": _omega(truth).tolist(),
        "sigma": {"additive": truth.additive, "proportional": truth.proportional},
    }


def cohort_folder(outputs: str | Path, kind: str) -> Path:
    """Where the synthetic cohort of a kind lies."""
    _truth(kind)
    return Path(outputs) / "data" / f"synthetic_{kind}"


def made_cohort(outputs: str | Path, kind: str) -> Path:
    """The folder of the default synthetic cohort of a kind, which is made where it is not whole."""
    folder = cohort_folder(outputs, kind)
    if not all((folder / name).is_file() for name in FILES):
        write_cohort(folder, kind)
    return folder


def write_cohort(
    folder: Path, kind: str, seed: int = 0, n: int | None = None, complete: bool = False, censor: bool = False
) -> None:
    """Write a synthetic cohort; the folder appears whole or not at all.

    ``events.csv``: an event table with id, time (h), evid, amt (IU), rate (IU/h), duration (h), dv (IU/mL,
    the baseline included), ipred (the true level without it), age (y), ht (cm), wt (kg), bgo (1 for blood
    group O), vwf (IU/dL; around surgery in the rows where it was measured), vwf_hist (prophylaxis) or
    vwf_prophylaxis (perioperative), and baseline (IU/mL). ``truth.parquet``, a row per subject: random
    effects, individual parameters, and the true covariates that decide them. ``truth.json``: population
    truth and settings.

    :param kind: ``prophylaxis`` or ``perioperative``.
    :param n: subjects; by default as many as in the published cohort.
    :param complete: whether no covariate is missing.
    :param censor: whether levels below LLOQ are reported as such (CENS 1, DV = LLOQ). Otherwise they are as
        drawn, also below 0: a floor would make the error look smaller than it is.
    :raises InputError: an unknown kind, n below 1 or a seed below 0.
    """
    truth = _truth(kind)
    n = truth.subjects if n is None else n
    for name, value, low in (("n", n, 1), ("seed", seed, 0)):
        whole(f"synthetic cohort: {name}", value, low)
    generator = np.random.default_rng([seed, list(TRUTHS).index(kind)])
    covariates = draw_covariates(n, generator)
    regimen = (_prophylaxis if kind == "prophylaxis" else _perioperative)(covariates, generator)
    # Around surgery the parameters follow the mean of what was measured, as in the model of the study.
    vwf = covariates.vwf if kind == "prophylaxis" else np.nanmean(regimen.vwf, axis=0)
    ffm = fat_free_mass(covariates.age, covariates.weight, covariates.height)
    eta = np.linalg.cholesky(_omega(truth)) @ generator.standard_normal((2, n))
    z = typical_parameters(kind, ffm, vwf)
    z |= {"CL": z["CL"] * np.exp(eta[0]), "V1": z["V1"] * np.exp(eta[1])}
    baseline = _baseline(n, generator)
    level = _levels(regimen, z)
    error = (truth.additive + truth.proportional * level) * generator.standard_normal(level.shape)
    recorded = _recorded(kind, covariates, regimen, generator, complete)
    rows = _rows(regimen, level, level + baseline + error, {**recorded, "baseline": baseline}, censor)
    ids = _ids(n)
    individual = {
        "id": ids,
        "eta_CL": eta[0],
        "eta_V1": eta[1],
        **z,
        **asdict(covariates),
        "vwf": vwf,  # that of the parameters, not of before surgery
        "ffm": ffm,
        "baseline": baseline,
    }
    settings = {"kind": kind, "seed": seed, "n": n, "complete": complete, "censor": censor}
    population = {
        "synthetic": True,
        "settings": settings,
        "typical": truth.typical,
        "reference": {"ffm": FFM_REFERENCE, "vwf": VWF_REFERENCE},
        **truth_of(kind),
        "effects": {"ffm": FFM_GRID, "vwf": VWF_GRID, **truth.effects},
    }
    with replaced(folder) as partial:
        partial.mkdir()
        unquoted = pyarrow.csv.WriteOptions(quoting_style="none")
        pyarrow.csv.write_csv(pa.table(rows), partial / "events.csv", write_options=unquoted)
        pyarrow.parquet.write_table(pa.table(individual), partial / "truth.parquet")
        write_text(partial / "truth.json", json.dumps(population, indent=2) + "\n")


def _truth(kind: str) -> Truth:
    return TRUTHS[one_of("synthetic cohort", kind, TRUTHS)]


def _omega(truth: Truth) -> FloatArray:
    sd = np.array(truth.omega_sd)
    return np.asarray(np.outer(sd, sd) * np.array([[1, truth.rho], [truth.rho, 1]]), dtype=np.float64)


def _ids(n: int) -> pa.Array:
    return pa.array([f"synthetic_{number}" for number in range(1, n + 1)])


def _vials(amount: FloatArray) -> FloatArray:
    """To the nearest vial, at least one."""
    return np.maximum(np.round(amount / VIAL), 1) * VIAL


def _prophylaxis(covariates: Covariates, generator: np.random.Generator) -> _Regimen:
    """One dose and the samples after it."""
    n = len(covariates.age)
    amount = _vials(generator.uniform(*DOSE_PER_KG, n) * covariates.weight)
    time = np.stack(
        [
            mean + sd * truncated_normal(n, -mean / sd, np.inf, generator)
            for mean, sd, _ in PROPHYLAXIS_SAMPLES
        ]
    )
    shares = np.array([[share] for _, _, share in PROPHYLAXIS_SAMPLES])
    taken = generator.random(time.shape) < shares
    at_zero = np.zeros((1, n))
    return _Regimen(at_zero, at_zero + BOLUS_DURATION, amount[None], time, taken, np.full_like(time, np.nan))


def _perioperative(covariates: Covariates, generator: np.random.Generator) -> _Regimen:
    """A loading dose, an infusion or boluses that decrease by the day, and about a sample a day."""
    n, weight = len(covariates.age), covariates.weight
    end = np.clip(FOLLOW_UP * np.exp(FOLLOW_UP_SD * generator.standard_normal(n)), *FOLLOW_UP_RANGE)
    until = np.where(generator.random(n) < INFUSED, generator.uniform(*INFUSED_UNTIL, n), 0.0)
    until = np.minimum(until, end)
    days = int(FOLLOW_UP_RANGE[1] // 24) + 1

    loading = _vials(generator.uniform(*LOADING_PER_KG, n) * weight)[None]
    # The infusion has a record a day, each with a rate of its own, from half an hour after the loading dose.
    begin = np.broadcast_to(0.5 + 24.0 * np.arange(days)[:, None], (days, n))
    running = np.clip(until - begin, 0, 24)
    decrease = np.maximum(DECREASE ** np.arange(days), LEAST)[:, None]
    infusion = generator.uniform(*INFUSION_PER_KG, n) * weight * decrease * running
    # The k-th bolus after the loading dose is due at 12 k hours, give or take half an hour.
    due = np.arange(1, 2 * days)[:, None]
    bolus_time = 12.0 * due + generator.uniform(-0.5, 0.5, (len(due), n))
    given = (bolus_time > until) & (bolus_time < end - 3) & ((due <= 6) | (due % 2 == 0))
    per_kg = generator.uniform(*BOLUS_PER_KG, n) * np.repeat(decrease, 2, axis=0)[1:]
    bolus = np.where(given, _vials(per_kg * weight), 0.0)

    # Daily samples, before the morning's bolus or at any time of an infusion, and some peaks after it.
    morning, dosed = bolus_time[1::2], given[1::2]
    any_time = morning + generator.uniform(-2, 2, morning.shape)
    trough = np.where(dosed, morning - generator.uniform(0.1, 0.8, morning.shape), any_time)
    peak = morning + generator.uniform(0.25, 1.0, morning.shape)
    daily = (trough < end - 6) & (generator.random(trough.shape) < DAILY)
    peaks = dosed & (peak < end - 1) & (generator.random(peak.shape) < PEAK)
    first = generator.uniform(0.25, 0.45, (1, n))
    always = np.ones((1, n), dtype=bool)
    time = np.concatenate([first, trough, peak, end[None]])
    taken = np.concatenate([always, daily, peaks, always])
    measured = taken & np.concatenate([~always, ~np.zeros_like(daily), np.zeros_like(peaks), always])
    rise = 1 + VWF_RISE * (1 - np.exp(-time / VWF_RISE_TIME))
    vwf = covariates.vwf * rise * np.exp(VWF_SD * generator.standard_normal(time.shape))
    minute = np.full((1, n), BOLUS_DURATION)
    return _Regimen(
        start=np.concatenate([np.zeros((1, n)), begin, bolus_time]),
        duration=np.concatenate([minute, running, np.broadcast_to(minute, bolus.shape)]),
        amount=np.concatenate([loading, infusion, bolus]),
        time=time,
        taken=taken,
        vwf=np.where(measured, vwf, np.nan),
    )


def _baseline(n: int, generator: np.random.Generator) -> FloatArray:
    severe = generator.random(n) < SEVERE
    return np.where(severe, generator.uniform(*SEVERE_BASELINE, n), generator.uniform(*MODERATE_BASELINE, n))


def _levels(regimen: _Regimen, z: dict[str, FloatArray]) -> FloatArray:
    """True levels (T, n)."""
    parts = []
    for begin in range(0, regimen.time.shape[1], _SUBJECTS_AT_A_TIME):
        some = np.s_[..., begin : begin + _SUBJECTS_AT_A_TIME]
        doses = (regimen.start[some], regimen.duration[some], regimen.amount[some])
        parts.append(levels(regimen.time[some], *doses, {name: values[some] for name, values in z.items()}))
    return np.concatenate(parts, axis=1)


def _recorded(
    kind: str, truth: Covariates, regimen: _Regimen, generator: np.random.Generator, complete: bool
) -> dict[str, FloatArray]:
    """Column -> what the file has of each covariate: (n,), or (T, n) where it is measured with samples."""
    n = len(truth.age)

    def missing(share: float) -> BoolArray:
        """The same number in every cohort, that nearest to the share."""
        return generator.permutation(n) < (0 if complete else round(share * n))

    def without(values: FloatArray, absent: BoolArray) -> FloatArray:
        return np.where(absent, np.nan, values)

    columns = {"age": truth.age, "ht": truth.height, "wt": truth.weight, "bgo": truth.blood_group_o}
    if kind == "prophylaxis":
        for name, column in (("weight", "wt"), ("height", "ht")):
            columns[column] = without(columns[column], missing(MISSING[name]))
        absent = missing(MISSING["vwf"])
        historic = truth.vwf * np.exp(HISTORIC_SD * generator.standard_normal(n))
        known = absent & (generator.random(n) < HISTORIC)
        return {**columns, "vwf": without(truth.vwf, absent), "vwf_hist": without(historic, ~known)}
    absent = missing(NO_VWF)
    never = absent & (generator.random(n) < NO_VWF_EVER)
    return {**columns, "vwf": without(regimen.vwf, absent), "vwf_prophylaxis": without(truth.vwf, never)}


def _rows(
    regimen: _Regimen, level: FloatArray, dv: FloatArray, recorded: dict[str, FloatArray], censor: bool
) -> dict[str, pa.Array]:
    """The event table: doses given and samples taken, in the order of subjects and time."""
    doses, n = regimen.start.shape
    samples = len(regimen.time)
    is_dose = np.repeat([True, False], [doses, samples])[:, None] & np.ones((1, n), dtype=bool)
    kept = np.concatenate([regimen.amount > 0, regimen.taken]).ravel()
    time = np.concatenate([regimen.start, regimen.time]).ravel()
    subject = np.tile(np.arange(n), doses + samples)
    order = np.lexsort((time, subject))
    order = order[kept[order]]

    def column(of_doses: FloatArray | None, of_samples: FloatArray | None) -> FloatArray:
        parts = (of_doses, (doses, n)), (of_samples, (samples, n))
        both = [
            np.full(shape, np.nan) if part is None else np.broadcast_to(part, shape) for part, shape in parts
        ]
        return np.asarray(np.concatenate(both).ravel()[order], dtype=np.float64)

    def cells(values: npt.ArrayLike) -> pa.Array:
        return pa.array(values, from_pandas=True)  # NaN is an empty cell

    whole = is_dose.ravel()[order]
    rate = np.divide(
        regimen.amount, regimen.duration, where=regimen.amount > 0, out=np.zeros_like(regimen.amount)
    )
    below = (dv < LLOQ) & censor
    table = {
        "id": _ids(n).take(pa.array(subject[order])),
        "time": cells(time[order]),
        "evid": cells(whole.astype(np.int8)),
        "amt": cells(column(regimen.amount, None)),
        "rate": cells(column(rate, None)),
        "duration": cells(column(regimen.duration, None)),
        "dv": cells(column(None, np.where(below, LLOQ, dv))),
    }
    if censor:
        table["cens"] = cells((np.nan_to_num(column(None, below.astype(np.float64)))).astype(np.int8))
        table["lloq"] = cells(column(None, np.full_like(dv, LLOQ)))
    table["ipred"] = cells(column(None, level))
    for name, values in recorded.items():
        everywhere = values.ndim == 1
        table[name] = cells(column(values if everywhere else None, values))
    return table
