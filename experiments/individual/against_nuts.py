"""Intervals of patients by each method of `medcm predict` against NUTS, in Monte Carlo standard errors.

python experiments/individual/against_nuts.py outputs/individual_truth patients.parquet [patients]
"""

import sys

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from medcm_cli import load_study
from medcm_cli.data import Population
from medcm_cli.posteriors.individual import METHODS
from medcm_cli.posteriors.sampling import KnownPopulation, diagnostics, sample

CHAINS, DRAWS = 4, 2500
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def main() -> None:
    """Print a table: root mean square and largest over patients, random effects and quantiles."""
    run, path = sys.argv[1:3]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 20
    study = load_study(run)
    frame = pd.read_parquet(path)
    events = study.read(frame[frame["id"].isin(frame["id"].unique()[-count:])])
    model = study.fits.model
    values = {name: v[..., :1].expand(*v.shape[:-1], CHAINS) for name, v in study.fits.estimates.items()}
    population = Population.from_events(events, torch.float64).select([np.arange(count)] * CHAINS)
    target = KnownPopulation(model, values, population, model.typical(values, population))
    drawn = sample(target, (0,), 1000, DRAWS, 0.8)
    checks = diagnostics(drawn, np.arange(count), list(events.ids))
    print(f"NUTS: R-hat at most {checks['r_hat'].max():.3f}, {checks['divergences'].max()} divergences")
    nuts = drawn.eta.reshape(-1, count, len(model.random_effects.names))
    # Of a quantile of a normal sample, in its sds; the tails' effective draws for NUTS.
    density = norm.pdf(norm.ppf(QUANTILES))
    once = np.sqrt(np.multiply(QUANTILES, np.subtract(1, QUANTILES))) / density
    effective = checks["ess_tail"].to_numpy().reshape(-1, count).T  # (N, K)
    rows = []
    for method in METHODS:
        draws = CHAINS * DRAWS * len(study.fits.records)
        eta = torch.stack(study.posterior(events, method, draws).draws)[..., 0]  # (K, S, N) of the first fit
        method_draws = eta.permute(1, 2, 0).numpy()
        gap = (np.quantile(method_draws, QUANTILES, 0) - np.quantile(nuts, QUANTILES, 0)) / nuts.std(0)
        error = once[:, None, None] * np.sqrt(1 / len(method_draws) + 1 / effective)
        z = gap / error
        rows.append((method, np.sqrt((gap**2).mean()), abs(gap).max(), np.sqrt((z**2).mean()), abs(z).max()))
    names = ["method", "rms, sd", "largest, sd", "rms, standard errors", "largest"]
    print(pd.DataFrame(rows, columns=names).round(3).to_markdown(index=False))


if __name__ == "__main__":
    main()
