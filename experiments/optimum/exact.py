"""The exact likelihood of bolus_1cpt_mm.csv, single doses, by numpy alone: saturable elimination in closed
form, Omega diagonal, adaptive Gauss-Hermite quadrature of three random effects, -2 log L - n log(2 pi),
float64.

    python experiments/optimum/exact.py ../shared/data/published/bolus_1cpt_mm.csv proportional
    python experiments/optimum/exact.py ../shared/data/published/bolus_1cpt_mm.csv log_normal
"""

import sys
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize

NAMES = ("VM", "KM", "V")
FOUND = {  # logarithms of VM, KM, V, their omegas and sigma where fits end, mg and mg/L
    "foce": np.log([0.9245, 0.2209, 65.63, 0.300, 0.288, 0.298, 0.200]),
    "vi": np.log([0.9255, 0.2243, 65.41, 0.305, 0.259, 0.298, 0.198]),
}
STEP = 1e-4  # of differences
EYE = np.eye(3)


class Data(NamedTuple):
    """Times, levels (mg/L) and whether there are any, (N, T); doses (N,), mg; logarithms of the subjects' own
    VM, KM and V, (N, 3), as they were simulated."""

    time: np.ndarray
    level: np.ndarray
    there: np.ndarray
    dose: np.ndarray
    own: np.ndarray
    log_normal: bool


def read(path, error):
    """In mg and mg/L."""
    rows = pd.read_csv(path)
    rows = rows[rows["SD"] == 1]
    doses = rows[rows["EVID"] == 1].set_index("ID")
    groups = [own for _, own in rows[(rows["EVID"] == 0) & (rows["MDV"] == 0)].groupby("ID")]
    size = max(map(len, groups))
    time, level, there = (np.full((len(groups), size), fill) for fill in (1.0, 1.0, 0.0))
    for n, own in enumerate(groups):
        time[n, : len(own)], level[n, : len(own)] = own["TIME"], own["DV"] / 1000
        there[n, : len(own)] = 1
    true = np.log(doses[["VM", "KM", "V"]].to_numpy(float) / [1000, 1000, 1])
    return Data(time, level, there, doses["AMT"].to_numpy(float) / 1000, true, error == "log_normal")


def logarithm(data, logs):
    """Of levels (..., N, T), from logarithms of parameters (..., N, 3): C / KM is Lambert's W."""
    vm, km, v = np.exp(np.moveaxis(logs, -1, 0))[..., None]
    first = data.dose[:, None] / v
    x = np.log(first / km) + (first - vm / v * data.time) / km
    u = np.where(x < 1, x - 0.5 * (x > -1), np.log(np.maximum(x - np.log(np.maximum(x, 1)), 0.1)))
    for _ in range(12):  # exp(u) + u = x, by Newton's method
        w = np.exp(u)
        u = u - (w + u - x) / (w + 1)
    return np.log(km) + u


def joint(data, eta, theta):
    """-2 log p(y, eta), without multiples of log(2 pi), (..., N)."""
    omega, sigma = np.exp(theta[3:6]), np.exp(theta[6])
    log = logarithm(data, theta[:3] + eta)
    if data.log_normal:
        white, scale = (np.log(data.level) - log) / sigma, np.log(data.level)
    else:
        white, scale = (data.level / np.exp(log) - 1) / sigma, log
    terms = np.where(data.there > 0, white**2 + 2 * (np.log(sigma) + scale), 0)
    return terms.sum(-1) + (eta**2 / omega**2).sum(-1) + 2 * theta[3:6].sum()


def derivatives(data, eta, theta):
    """The joint, its gradient (N, 3) and Hessian (N, 3, 3) in eta, by differences."""
    pairs = [(0, 1), (0, 2), (1, 2)]
    shifts = [0 * EYE[0], *(sign * EYE[i] for i in range(3) for sign in (1, -1))]
    shifts += [a * EYE[i] + b * EYE[j] for i, j in pairs for a in (1, -1) for b in (1, -1)]
    value = joint(data, eta + STEP * np.array(shifts)[:, None], theta)
    up, down, corners = value[1:7:2], value[2:7:2], value[7:].reshape(3, 4, -1)
    hessian = np.zeros((len(eta), 3, 3))
    hessian[:, range(3), range(3)] = ((up - 2 * value[0] + down) / STEP**2).T
    for (i, j), (a, b, c, d) in zip(pairs, corners, strict=True):
        hessian[:, i, j] = hessian[:, j, i] = (a - b - c + d) / (2 * STEP) ** 2
    return value[0], ((up - down) / (2 * STEP)).T, hessian


def modes(data, eta, theta):
    """Where each subject's joint is least, from ``eta`` (N, 3), and the Hessian there."""
    for _ in range(60):
        value, gradient, hessian = derivatives(data, eta, theta)
        size, turn = np.linalg.eigh(hessian)
        size = np.maximum(np.abs(size), 1e-3 * np.abs(size).max(-1, keepdims=True))
        step = -np.einsum("nij,nj->ni", turn, np.einsum("nji,nj->ni", turn, gradient) / size)
        for _ in range(25):
            worse = ~(joint(data, eta + step, theta) <= value + 1e-12 * np.abs(value) + 1e-10)
            step = np.where(worse[:, None], step / 2, step)
        step[worse] = 0
        eta = eta + step
        if np.abs(step).max() < 1e-7:
            break
    return eta, derivatives(data, eta, theta)[2]


def objective(data, theta, nodes, start):
    """-2 log L - n log(2 pi); ``start`` (N, 3) is filled with the modes."""
    start[:], hessian = modes(data, start, theta)
    root = np.linalg.cholesky(np.linalg.inv(hessian / 2))
    x, weight = np.polynomial.hermite_e.hermegauss(nodes)
    grid = np.stack(np.meshgrid(x, x, x, indexing="ij"), -1).reshape(-1, 3)
    logs = np.log(weight / np.sqrt(2 * np.pi))
    weights = np.add.outer(np.add.outer(logs, logs), logs).reshape(-1, 1)
    away = start + np.einsum("nij,kj->kni", root, grid)
    value = joint(data, away, theta)
    terms = weights + (grid**2).sum(-1)[:, None] / 2 - value / 2
    most = terms.max(0)
    log_det = 2 * np.log(np.einsum("nii->ni", root)).sum(-1)
    return -2 * (most + np.log(np.exp(terms - most).sum(0)) + log_det / 2).sum()


def main(path, error):
    """Lines of what is found."""
    np.seterr(all="ignore")  # of steps that are not taken
    data = read(path, error)
    units = 2 * data.there.sum() * np.log(1000)  # of the file, ug and ug/L
    mean, spread = data.own.mean(0), data.own.std(0)
    off = np.where(data.there > 0, np.log(data.level) - logarithm(data, data.own), np.nan)
    of_level = np.exp(off) - 1
    for name, values in (("(y - f) / f", of_level), ("log y - log f", off)):
        at = values[data.there > 0]
        skew = ((at - at.mean()) ** 3).mean() / at.std() ** 3
        rest = f"mean {at.mean():.4f}, sd {at.std():.4f}, skewness {skew:.2f}"
        print(f"at the subjects' true values {name}: {rest}")
    points = {"truth": np.concatenate([mean, np.log(spread), [np.log(0.2)]]), **FOUND}
    for name, theta in points.items():
        value = objective(data, theta, 9, np.zeros_like(data.own)) + units
        print(f"OFV at the values of {name}: {value:.2f}")
    start = np.zeros_like(data.own)

    def value(theta):
        return objective(data, theta, 5, start)

    def slope(theta):
        ends = [[value(theta + sign * STEP * e) for sign in (1, -1)] for e in np.eye(7)]
        return np.array([(up - down) / (2 * STEP) for up, down in ends])

    found = minimize(value, points["truth"], jac=slope, method="BFGS", options={"gtol": 0.02})
    step = 1e-3
    rows = [(slope(found.x + step * e) - slope(found.x - step * e)) / (2 * step) for e in np.eye(7)]
    errors = np.sqrt(np.diag(np.linalg.inv((np.array(rows) + np.array(rows).T) / 4)))
    ofv = objective(data, found.x, 9, start) + units
    print(f"optimum: OFV {ofv:.2f}, omegas {np.exp(found.x[3:6]).round(3)}, sigma {np.exp(found.x[6]):.4f}")
    for name, at, true, se in zip(NAMES, found.x, mean, errors, strict=False):
        print(
            f"{name} {np.exp(at):.4g} (geometric mean of the true values {np.exp(true):.4g}, "
            f"{100 * np.expm1(at - true):+.1f} %; standard error {100 * se:.1f} %)"
        )


if __name__ == "__main__":
    main(*sys.argv[1:3])
