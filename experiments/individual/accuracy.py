"""How right the posterior of a patient is, and what it costs: each method against a dense grid over eta,
whose log posterior is computed here with numpy alone.

    python experiments/individual/accuracy.py outputs/individual_truth patients.parquet [patients]
"""

import sys
import time

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from medcm_cli import load_study
from medcm_cli.posteriors.individual import METHODS

POINTS = 501
DRAWS = 1000  # of each fit
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SD = 6.0  # of Laplace's Gaussian that the grid reaches to each side


def concentration(z, dose, duration, times):
    """IU/mL of a two-compartment model during or after one infusion: the textbook's sum of two
    exponentials, not the package's."""
    k10, k12, k21 = z["CL"] / z["V1"], z["Q"] / z["V1"], z["Q"] / z["V2"]
    total = k10 + k12 + k21
    root = np.sqrt(total**2 - 4 * k10 * k21)
    run = np.minimum(times, duration)
    alpha, beta = (total + root) / 2, (total - root) / 2
    amount = 0.0
    for rate, weight in ((alpha, (alpha - k21) / (alpha - beta)), (beta, (k21 - beta) / (alpha - beta))):
        given = dose / duration * (1 - np.exp(-rate * run)) / rate
        amount = amount + weight * given * np.exp(-rate * (times - run))
    return amount / z["V1"] / 1000


def log_posterior(eta, patient, zeta, precision, sigma):
    """Up to a constant; eta (2, ...)."""
    z = {**zeta, "CL": zeta["CL"] * np.exp(eta[0]), "V1": zeta["V1"] * np.exp(eta[1])}
    result = -0.5 * np.einsum("i...,ij,j...->...", eta, precision, eta)
    for t, y in zip(patient["time"], patient["dv"], strict=True):
        result = result - 0.5 * ((y - concentration(z, patient["dose"], patient["duration"], t)) / sigma) ** 2
    return result


def weighted(values, weights):
    """Quantiles of a density on a grid."""
    share = np.cumsum(weights) / weights.sum()
    middle = share - 0.5 * weights / weights.sum()
    return np.interp(QUANTILES, middle, values)


def patients_of(frame):
    """Dose, its duration and the samples of each patient."""
    patients = []
    for _, rows in frame.groupby("id", sort=False):
        dose, seen = rows[rows["mdv"] == 1].iloc[0], rows[rows["mdv"] == 0]
        patients.append(
            {
                "dose": dose["rate"] * dose["duration"],
                "duration": dose["duration"],
                "time": seen["time"].to_numpy(),
                "dv": seen["dv"].to_numpy(),
            }
        )
    return patients


def population_of(fits, population, count):
    """Of the first fit: typical parameters of each patient, the precision of eta, and sigma."""
    zeta = fits.model.typical(fits.estimates, population)
    zeta = {name: values.expand(1, count, -1)[0, :, 0].numpy() for name, values in zeta.items()}
    rows = fits.model.omega_cholesky(fits.estimates)
    lower = np.array([[float(entry[0]) for entry in (*row, [0.0])[:2]] for row in rows])
    sigma = float(fits.model.error.sigmas(fits.estimates)["additive"][0])
    return zeta, np.linalg.inv(lower @ lower.T), sigma


def by_each_method(study, events, count):
    """The posterior by each method, and its seconds per patient and fit."""
    posteriors, seconds = {}, {}
    draws = DRAWS * len(study.fits.records)
    for method in METHODS:
        study.posterior(events, method, draws)  # once, to warm up
        start = time.perf_counter()
        posteriors[method] = study.posterior(events, method, draws)
        seconds[method] = (time.perf_counter() - start) / count / len(study.fits.records)
    return posteriors, seconds


def errors_of(number, known, posteriors):
    """Of patient ``number``: the largest error of the mode, and a row per random effect and method with the
    errors of the quantiles, in posterior sds. ``known`` are the arguments of ``log_posterior`` after eta."""
    tight = {"xatol": 1e-10, "fatol": 1e-13}
    best = minimize(lambda *a: -log_posterior(*a), [0.0, 0.0], known, "Nelder-Mead", options=tight).x
    laplace = posteriors["laplace"]
    mode = np.array([float(m[0, number, 0]) for m in laplace.mode])
    sd = np.sqrt([float(laplace.covariance[k, k, number, 0]) for k in range(2)])
    axes = [np.linspace(best[k] - SD * sd[k], best[k] + SD * sd[k], POINTS) for k in range(2)]
    density = log_posterior(np.stack(np.meshgrid(*axes, indexing="ij")), *known)
    density = np.exp(density - density.max())
    rows = []
    for k, name in enumerate(("CL", "V1")):
        marginal = density.sum(1 - k)
        exact = weighted(axes[k], marginal)
        mean = (axes[k] * marginal).sum() / marginal.sum()
        spread = np.sqrt(((axes[k] - mean) ** 2 * marginal).sum() / marginal.sum())
        for method, posterior in posteriors.items():
            drawn = np.quantile(posterior.draws[k][:, number, 0].numpy(), QUANTILES)
            error = (drawn - exact) / spread
            rows.append({"method": method, "eta": name} | dict(zip(QUANTILES, error, strict=True)))
    return np.abs(mode - best).max(), rows


def main():
    run, path = sys.argv[1:3]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 20
    study = load_study(run)
    frame = pd.read_parquet(path)
    frame = frame[frame["id"].isin(frame["id"].unique()[-count:])]
    events = study.read(frame)
    zeta, precision, sigma = population_of(study.fits, study.population(events), count)
    posteriors, seconds = by_each_method(study, events, count)
    rows, modes = [], []
    for number, patient in enumerate(patients_of(frame)):
        typical = {name: values[number] for name, values in zeta.items()}
        mode, errors = errors_of(number, (patient, typical, precision, sigma), posteriors)
        modes.append(mode)
        rows += errors
    table = pd.DataFrame(rows)
    print(f"{count} patients, fit {study.fits.folders[0]}")
    print(f"mode: largest difference from Nelder-Mead's {max(modes):.1e}")
    print("quantiles of eta, difference from the grid's in posterior sd: root mean square over patients")
    print(table.groupby(["method", "eta"]).agg(lambda e: np.sqrt((e**2).mean())).round(4).to_string())
    print("largest")
    print(table.groupby(["method", "eta"]).agg(lambda e: e.abs().max()).round(4).to_string())
    effective = posteriors["importance"].effective
    low, high = float(effective.min()), float(effective.max())
    print(f"importance: effective share of the proposals {low:.2f} to {high:.2f}")
    print("ms per patient and fit:", {name: round(1000 * s, 3) for name, s in seconds.items()})


if __name__ == "__main__":
    main()
