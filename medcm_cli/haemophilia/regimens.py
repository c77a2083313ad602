"""Regimens of the synthetic cohorts: doses and samples, on prophylaxis and around surgery, and the true
levels that follow from them."""

from dataclasses import dataclass

import numpy as np

from medcm_cli.data.sheet import BoolArray, FloatArray
from medcm_cli.haemophilia.covariates import Covariates, truncated_normal
from medcm_cli.haemophilia.virtual import MINUTE, levels

VIAL = 250.0  # IU

# Prophylaxis. Samples near 4, 24 and 48 h; the mean of the last is what gives a median follow-up of 44 h.
# Assumed: that 15 % have no last sample, and 15 % one more, near 10 h.
PROPHYLAXIS_SAMPLES = (
    (4.0, 1.5, 1.0),
    (10.0, 1.5, 0.15),
    (24.0, 3.0, 1.0),
    (45.0, 5.0, 0.85),
)  # mean, sd, share
DOSE_PER_KG = (25.0, 50.0)  # IU/kg

# Surgery. All assumed but for the median follow-up and the factor between the two settings.
FOLLOW_UP, FOLLOW_UP_SD, FOLLOW_UP_RANGE = 144.0, 0.35, (48.0, 330.0)  # h: median, sd of the log, clipped to
LOADING_PER_KG = (35.0, 50.0)  # IU/kg at time 0
INFUSED = 0.5  # share with a continuous infusion, until ...
INFUSED_UNTIL = (72.0, 168.0)  # h, boluses from then on
INFUSION_PER_KG = (2.0, 3.5)  # IU/kg/h on the first day
BOLUS_PER_KG = (20.0, 30.0)  # IU/kg on the first day; every 12 h for three days, then every 24 h
DECREASE, LEAST = 0.9, 0.5  # of infusions and boluses: per day, and how far
DAILY, PEAK = 0.9, 0.3  # share of the days with a sample (a trough where boluses are given), and with a peak
# Some patients are sampled now and then: on few days, never at a peak, and not always after the loading dose.
SPARSE, SPARSE_DAILY, SPARSE_FIRST = 0.25, 0.2, 0.5
# VWF:Ag rises by so much, relative, with this time constant (h): the mean of the samples is 1.3 times the
# value on prophylaxis.
VWF_RISE, VWF_RISE_TIME = 0.35, 36.0
VWF_SD = 0.1  # of the log of VWF:Ag, from sample to sample

_SUBJECTS_AT_A_TIME = 2000  # in the prediction of levels, to bound memory


@dataclass(frozen=True)
class Regimen:
    """Dose events (E, n): ``start`` and ``duration`` h, ``amount`` IU, 0 where there is none. Samples (T, n):
    ``time`` h, ``taken``, and ``vwf``, what is measured with them, IU/dL, NaN where nothing is."""

    start: FloatArray
    duration: FloatArray
    amount: FloatArray
    time: FloatArray
    taken: BoolArray
    vwf: FloatArray


def _vials(amount: FloatArray) -> FloatArray:
    """To the nearest vial, at least one."""
    return np.maximum(np.round(amount / VIAL), 1) * VIAL


def prophylaxis(covariates: Covariates, generator: np.random.Generator) -> Regimen:
    """One dose and the samples after it, of n patients."""
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
    return Regimen(at_zero, at_zero + MINUTE, amount[None], time, taken, np.full_like(time, np.nan))


def perioperative(covariates: Covariates, generator: np.random.Generator) -> Regimen:
    """A loading dose, an infusion or boluses that decrease by the day, and about a sample a day, or few in
    all, of n patients."""
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
    sparse = generator.random((1, n)) < SPARSE
    daily = (trough < end - 6) & (generator.random(trough.shape) < np.where(sparse, SPARSE_DAILY, DAILY))
    peaks = dosed & (peak < end - 1) & (generator.random(peak.shape) < np.where(sparse, 0.0, PEAK))
    first = generator.uniform(0.25, 0.45, (1, n))
    at_first = generator.random((1, n)) < np.where(sparse, SPARSE_FIRST, 1.0)
    always = np.ones((1, n), dtype=bool)
    time = np.concatenate([first, trough, peak, end[None]])
    taken = np.concatenate([at_first, daily, peaks, always])
    measured = taken & np.concatenate([~always, ~np.zeros_like(daily), np.zeros_like(peaks), always])
    rise = 1 + VWF_RISE * (1 - np.exp(-time / VWF_RISE_TIME))
    vwf = covariates.vwf * rise * np.exp(VWF_SD * generator.standard_normal(time.shape))
    minute = np.full((1, n), MINUTE)
    return Regimen(
        start=np.concatenate([np.zeros((1, n)), begin, bolus_time]),
        duration=np.concatenate([minute, running, np.broadcast_to(minute, bolus.shape)]),
        amount=np.concatenate([loading, infusion, bolus]),
        time=time,
        taken=taken,
        vwf=np.where(measured, vwf, np.nan),
    )


def true_levels(regimen: Regimen, z: dict[str, FloatArray]) -> FloatArray:
    """True levels (T, n), IU/mL, of patients with the parameters ``z`` (n,), L/h and L."""
    parts = []
    for begin in range(0, regimen.time.shape[1], _SUBJECTS_AT_A_TIME):
        some = np.s_[..., begin : begin + _SUBJECTS_AT_A_TIME]
        doses = (regimen.start[some], regimen.duration[some], regimen.amount[some])
        parts.append(levels(regimen.time[some], *doses, {name: values[some] for name, values in z.items()}))
    return np.concatenate(parts, axis=1)
