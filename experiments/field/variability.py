"""Which method to use when: data sets of little and of much variability, rich and sparse, linear and not.

    python experiments/field/variability.py make outputs/data
    python experiments/field/variability.py show outputs/linear_rich

Writes four tables, each of 40 sets: ten for each variability of 20, 50, 100 and 150 % (CV of both
parameters).
Every set has 300 observations. ``linear``: levels after a bolus, one compartment; ``emax``: responses to
doses, without time.
The first parameter (CL, ED50) follows weight to the power of 0.75. ``show`` prints what fits of them have
come to, of those that have converged.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from medcm_cli.runs.summary import summarize

VARIABILITY = (0.2, 0.5, 1.0, 1.5)
SETS = 10  # of each
DESIGNS = {"rich": (50, 6), "sparse": (150, 2)}  # subjects, observations of each
TIMES = np.array([0.5, 2.0, 6.0, 12.0, 24.0, 36.0])  # h
DOSES = np.array([0.0, 100.0, 300.0, 500.0, 1000.0, 3000.0])  # mg
TRUTH = {"linear": {"CL": 5.0, "V1": 50.0}, "emax": {"ED50": 500.0, "EMAX": 30.0}}  # L/h, L; mg, score
BOLUS, BASELINE = 100.0, 5.0  # mg, score
ADDITIVE, PROPORTIONAL = {"linear": 0.02, "emax": 0.0}, {"linear": 0.15, "emax": 0.1}  # sd, added (mg/L)
POWER, USUAL = 0.75, 70.0  # of weight, kg


def omega(variability: float) -> float:
    """Of a log-normal parameter with that coefficient of variation."""
    return float(np.sqrt(np.log1p(variability**2)))


def table(model: str, design: str) -> pd.DataFrame:
    """All sets of a model and design; random numbers of each are its own."""
    subjects, seen = DESIGNS[design]
    parts = []
    for number, cv in enumerate(np.repeat(VARIABILITY, SETS), 1):
        rng = np.random.default_rng([number, list(TRUTH).index(model), list(DESIGNS).index(design)])
        weight = np.round(np.clip(rng.normal(USUAL, 15, subjects), 35, 120), 1)
        first, second = (
            typical * np.exp(omega(cv) * rng.standard_normal(subjects)) for typical in TRUTH[model].values()
        )
        first = first * (weight / USUAL) ** POWER
        grid = TIMES if model == "linear" else DOSES
        at = np.sort(np.array([rng.choice(grid, seen, replace=False) for _ in range(subjects)]), 1)
        if model == "linear":
            level = BOLUS / second[:, None] * np.exp(-(first / second)[:, None] * at)
        else:
            level = BASELINE + second[:, None] * at / (first[:, None] + at)
        sd = ADDITIVE[model] + PROPORTIONAL[model] * level
        level = level + sd * rng.standard_normal(level.shape)
        subject = np.arange(1, subjects + 1)
        rows = {"set": number, "id": np.repeat(subject, seen), "wt": np.repeat(weight, seen)}
        if model == "linear":
            observed = pd.DataFrame({**rows, "time": at.ravel(), "amt": 0.0, "dv": level.ravel(), "evid": 0})
            dose = pd.DataFrame(
                {"set": number, "id": subject, "wt": weight, "time": 0.0, "amt": BOLUS, "dv": 0.0, "evid": 1}
            )
            parts.append(pd.concat([dose, observed]).sort_values(["id", "time"], kind="stable"))
        else:
            parts.append(pd.DataFrame({**rows, "dose": at.ravel(), "y": level.ravel()}))
    return pd.concat(parts)


def shown(study: str) -> pd.DataFrame:
    """A row per objective and variability: of all fits how many have converged, and of these the root mean
    squared error of the typical parameters (at the usual weight) and the bias of both omegas, %; how far
    their OFV by quadrature is above the lowest of all objectives, the median; and the seconds of a fit."""
    fits = summarize([Path(study)]).fits
    truth = TRUTH["linear" if "typical_CL" in fits else "emax"]
    fits = fits.assign(cv=[VARIABILITY[(int(fold) - 1) // SETS] for fold in fits["fold"]])
    lowest = fits.groupby("fold")["ofv_agq"].transform("min") if "ofv_agq" in fits else np.nan
    fits = fits.assign(above=fits["ofv_agq"] - lowest if "ofv_agq" in fits else np.nan)
    rows = []
    for (variant, objective, cv), own in fits.groupby(["variant", "objective", "cv"]):
        ended = own[own["converged"].eq(True)]
        errors = [
            100 * np.sqrt(((ended[f"typical_{name}"] / value - 1) ** 2).mean())
            for name, value in truth.items()
        ]
        bias = [100 * (ended[f"omega_{i}"] / omega(cv) - 1).mean() for i in (1, 2)]
        names = [f"{what} {name}" for what in ("RMSE", "bias omega") for name in truth]
        rows.append(
            {
                "": f"{objective}, {variant}",
                "CV, %": round(100 * cv),
                "converged": f"{len(ended)} of {len(own)}",
                **{name: round(value, 1) for name, value in zip(names, [*errors, *bias], strict=True)},
                "OFV above the lowest": round(ended["above"].median(), 2),
                "s per fit": round(own["seconds"].mean(), 2),
            }
        )
    return pd.DataFrame(rows)


def main(what: str, *places: str) -> None:
    """Tables of data into a folder, or of studies."""
    if what == "show":
        for study in places:
            print(f"{study}\n\n{shown(study).to_markdown(index=False)}\n")
        return
    folder = Path(places[0])
    folder.mkdir(parents=True, exist_ok=True)
    for model in TRUTH:
        for design in DESIGNS:
            table(model, design).to_csv(folder / f"{model}_{design}.csv", index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
