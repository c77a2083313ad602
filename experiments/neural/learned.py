"""Two right-hand sides with a part that is learned, on simulated data whose truth is known.

python experiments/neural/learned.py data       # writes the event tables into data/
python experiments/neural/learned.py compare    # what was learned, beside the truth
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

DATA = Path("data")
DOSES, SUBJECTS = (200.0, 600.0, 2000.0), 20
CL, V = 0.5, 5.0  # L/h and L, of the drug in the second study, known
F64 = torch.float64


def response_rate(t: Tensor, a: Any, p: Any, f: Any) -> dict[str, Tensor]:
    """A drug whose kinetics are known multiplies the formation of a response by what it is to learn."""
    del t
    return {
        "drug": -CL / V * a.drug,
        "response": p.KIN * f.effect(a.drug / V) - p.KOUT * a.response,
    }


def at_rest(p: Any) -> dict[str, Tensor]:
    """Without drug."""
    return {"response": p.KIN / p.KOUT}


def response(t: Tensor, a: Any, p: Any) -> Any:
    """What is measured."""
    del t, p
    return a.response


def true_clearance(c: np.ndarray) -> np.ndarray:
    """L/h of a typical patient at concentrations in mg/L: VM 60 mg/h, KM 300 mg/L."""
    return np.asarray(60 / (300 + c))


def true_effect(c: np.ndarray) -> np.ndarray:
    """What multiplies the formation: three times at most, half of that at 10 mg/L."""
    return np.asarray(1 + 2 * c / (10 + c))


def followed(right: Callable[..., Any], begin: list[float], times: np.ndarray) -> np.ndarray:
    """Both amounts (C, T) at some times."""
    return solve_ivp(right, (0, times[-1]), begin, t_eval=times, rtol=1e-9, atol=1e-9).y


def eliminated(dose: float, volume: float, factor: float, times: np.ndarray) -> np.ndarray:
    """Concentrations (T,)."""

    def right(t: float, y: np.ndarray) -> np.ndarray:
        del t
        return np.asarray(-factor * true_clearance(y / volume) * y / volume)

    return np.asarray(followed(right, [dose], times)[0] / volume)


def responded(dose: float, kin: float, kout: float, times: np.ndarray) -> np.ndarray:
    """The response (T,)."""

    def right(t: float, y: np.ndarray) -> list[float]:
        del t
        return [-CL / V * y[0], kin * float(true_effect(y[0] / V)) - kout * y[1]]

    return followed(right, [dose, kin / kout], times)[1]


def rows(number: int, dose: float, times: np.ndarray, seen: np.ndarray) -> Iterator[dict[str, Any]]:
    """A patient of an event table."""
    yield {"id": number, "time": 0.0, "evid": 1, "amt": dose, "dv": "."}
    for time, value in zip(times, seen, strict=True):
        yield {"id": number, "time": time, "evid": 0, "amt": ".", "dv": round(float(value), 6)}


def write() -> None:
    """Both tables: random effects of 20 %, errors of 5 %."""
    DATA.mkdir(exist_ok=True)
    g = np.random.default_rng(1)
    tables: dict[str, list[dict[str, Any]]] = {"elimination": [], "response": []}
    for number in range(3 * SUBJECTS):
        vary, noise = np.exp(0.2 * g.normal(size=4)), np.exp(0.05 * g.normal(size=(2, 8)))
        dose = DOSES[number % 3]
        times = np.array([0.5, 2, 4, 8, 12, 16, 24, 36]) * np.exp(0.1 * g.normal(size=8))
        times = np.round(np.sort(times), 3)
        seen = eliminated(dose, 2 * vary[0], vary[1], times) * noise[0]
        tables["elimination"] += rows(number, dose, times, seen)
        dose = (0.0001, 50.0, 100.0)[number % 3]  # next to nothing: all have a dose
        seen = responded(dose, 4 * vary[2], 0.3 * vary[3], times) * noise[1]
        tables["response"] += rows(number, dose, times, seen)
    for name, table in tables.items():
        pd.DataFrame(table).to_csv(DATA / f"{name}.csv", index=False)


def learned(study: str) -> Any:
    """The fits of a study."""
    from medcm_cli.patients import load_study

    return load_study(Path("outputs") / study, trust=True).fits


def compare() -> None:
    """Of each study the median over fits and the largest distance from the truth."""
    fits = learned("neural_elimination")
    values = {name: value.to(F64) for name, value in fits.estimates.items()}
    model = fits.model
    (term,) = model.pk.right_side.terms
    weights = [values[name][..., None, None, :] for name in term.weights]
    clearance = torch.nn.functional.softplus(values["global.CL"])
    print("clearance, L/h, at a concentration, mg/L: truth, median of the fits (least to most)")
    for c in (10.0, 100.0, 300.0, 600.0, 1000.0, 2000.0):
        found = (term(weights, torch.full((1, 1, 1), c, dtype=F64)) * clearance).flatten()
        truth = float(true_clearance(np.array(c)))
        print(f"{c:6.0f}  {truth:.4f}  {found.median():.4f} ({found.min():.4f} to {found.max():.4f})")
    fits = learned("neural_response")
    values = {name: value.to(F64) for name, value in fits.estimates.items()}
    from medcm_cli.pk import Schedule, solve

    z = {name: torch.nn.functional.softplus(values[f"global.{name}"]) for name in ("KIN", "KOUT")}
    times = np.array([1.0, 4.0, 8.0, 16.0, 24.0, 36.0])
    zero = torch.zeros(1, 1, 1, len(fits.records), dtype=F64)
    print("response, U/L, of a typical patient after a dose: truth, median of the fits (least to most)")
    for dose in (50.0, 100.0, 200.0):
        hours = torch.from_numpy(times).view(-1, 1, 1, 1).expand(-1, 1, 1, zero.shape[-1])
        schedule = Schedule.build(hours, zero, zero, zero + dose)
        with torch.no_grad():
            found = solve(fits.model.pk, schedule, {**z, **fits.model.pk.weights(values)})[:, 0, 0]
        truth = responded(dose, 4.0, 0.3, times)
        for time, value, each in zip(times, truth, found, strict=True):
            spread = f"{each.median():.2f} ({each.min():.2f} to {each.max():.2f})"
            print(f"{dose:4.0f} mg  {time:4.0f} h  {value:.2f}  {spread}")


if __name__ == "__main__":
    {"data": write, "compare": compare}[sys.argv[1]]()
