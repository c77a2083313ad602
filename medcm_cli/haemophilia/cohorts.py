"""Synthetic stand-ins for the two cohorts of patients whose data are not public: haemophilia A patients on
prophylaxis, and the same around surgery (docs/methods.md, "Protocol of the real data").

Typical values, covariate effects, Omega and the combined error are those that Janssen et al. (2024, J
Pharmacokinet Pharmacodyn 51:797-808, doi 10.1007/s10928-024-09931-w) estimated by variational inference; the
numbers of patients, doses and samples, the follow-up and what is missing are theirs too. Where they report
nothing, the constants here, of the regimens and of the records are assumptions, and say so.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from medcm_cli.checks import one_of, whole
from medcm_cli.data.sheet import FloatArray
from medcm_cli.files import replaced, write_text
from medcm_cli.haemophilia import virtual
from medcm_cli.haemophilia.covariates import draw_covariates, fat_free_mass
from medcm_cli.haemophilia.records import event_table, recorded, subject_ids
from medcm_cli.haemophilia.regimens import perioperative, prophylaxis, true_levels

FILES = ("events.csv", "truth.parquet", "truth.json")
FFM_REFERENCE, VWF_REFERENCE = 60.0, 100.0  # kg, IU/dL


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
        # Of the fits of 1250 epochs, which the protocol describes; the printed row is of 1000 epochs.
        omega_sd=(0.316, 0.179),
        rho=0.579,
        additive=0.0246,
        proportional=0.165,
    ),
}

# Level before the first dose, IU/mL: severe and moderate haemophilia A; shares and uniform laws assumed.
SEVERE, SEVERE_BASELINE, MODERATE_BASELINE = 0.7, (0.0, 0.01), (0.01, 0.05)


def typical_parameters(kind: str, ffm: FloatArray, vwf: FloatArray) -> dict[str, FloatArray]:
    """True typical parameters: monotone cubics through the effects of the grids, 1 at the reference; beyond a
    grid its end counts.

    :param ffm: fat-free mass of n subjects, (n,), kg. :param vwf: VWF:Ag, (n,), IU/dL.
    :returns: CL and Q (L/h), V1 and V2 (L), (n,) each.
    :raises InputError: an unknown kind.
    """
    from scipy.interpolate import PchipInterpolator  # half a second that few commands need

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


def drawn_from(
    covariates: Collection[str], omega: Sequence[Sequence[float]], kind: str | None
) -> Callable[[Mapping[str, FloatArray]], dict[str, FloatArray]] | None:
    """The true typical parameters of virtual patients as a function of their covariates, by the Omega that
    tells from what they were drawn; None where neither the simulation study nor a cohort has it.

    :param covariates: that the data set has. :param kind: of a cohort.
    """
    if set(covariates) == {"ffm", "vwf"} and kind is not None and omega == truth_of(kind)["omega"]:
        return lambda at: typical_parameters(kind, at["ffm"], at["vwf"])
    if set(covariates) == {"weight", "vwf"} and np.array_equal(omega, virtual.Truth().omega):
        return lambda at: virtual.typical_parameters(at["weight"], at["vwf"], virtual.Truth())
    return None


def truth_of(kind: str) -> dict[str, Any]:
    """What a synthetic cohort was drawn from, as ``dataset.truth`` of a configuration has it: names of the
    random effects, Omega (log scale) and sigmas (additive in IU/mL). :raises InputError: an unknown kind."""
    truth = _truth(kind)
    return {
        "random_effects": ["CL", "V1"],
        "omega": _omega(truth).tolist(),
        "sigma": {"additive": truth.additive, "proportional": truth.proportional},
    }


_MOST = 10_000_000  # subjects


def cohort_folder(outputs: str | Path, kind: str) -> Path:
    """Where the synthetic cohort of a kind lies. :raises InputError: an unknown kind."""
    _truth(kind)
    return Path(outputs) / "data" / f"synthetic_{kind}"


def made_cohort(outputs: str | Path, kind: str) -> Path:
    """The folder of the default synthetic cohort of a kind, which is made where it is not whole."""
    folder = cohort_folder(outputs, kind)
    if not _is_whole(folder):
        with replaced(folder, keep=True) as partial:  # never under another process that reads it
            write_cohort(partial, kind)
    if not _is_whole(folder):
        write_cohort(folder, kind)
    return folder


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)


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
    for name, value, low, most in (("n", n, 1, _MOST), ("seed", seed, 0, None)):
        whole(f"synthetic cohort: {name}", value, low, most)
    settings = {"kind": kind, "seed": seed, "n": n, "complete": complete, "censor": censor}
    events, individual = _drawn(kind, seed, n, complete, censor)
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
        pyarrow.csv.write_csv(events, partial / "events.csv", write_options=unquoted)
        pyarrow.parquet.write_table(individual, partial / "truth.parquet")
        write_text(partial / "truth.json", json.dumps(population, indent=2) + "\n")


def _drawn(kind: str, seed: int, n: int, complete: bool, censor: bool) -> tuple[pa.Table, pa.Table]:
    """The event table and each subject's truth."""
    truth = _truth(kind)
    generator = np.random.default_rng([seed, list(TRUTHS).index(kind)])
    covariates = draw_covariates(n, generator)
    regimen = (prophylaxis if kind == "prophylaxis" else perioperative)(covariates, generator)
    # Around surgery the parameters follow the mean of what was measured, as in the model of the study.
    vwf = covariates.vwf if kind == "prophylaxis" else np.nanmean(regimen.vwf, axis=0)
    ffm = fat_free_mass(covariates.age, covariates.weight, covariates.height)
    eta = np.linalg.cholesky(_omega(truth)) @ generator.standard_normal((2, n))
    z = typical_parameters(kind, ffm, vwf)
    z |= {"CL": z["CL"] * np.exp(eta[0]), "V1": z["V1"] * np.exp(eta[1])}
    baseline = _baseline(n, generator)
    level = true_levels(regimen, z)
    error = (truth.additive + truth.proportional * level) * generator.standard_normal(level.shape)
    columns = recorded(kind, covariates, regimen, generator, complete)
    events = event_table(regimen, level, level + baseline + error, {**columns, "baseline": baseline}, censor)
    individual = {
        "id": subject_ids(n),
        "eta_CL": eta[0],
        "eta_V1": eta[1],
        **z,
        **asdict(covariates),
        "vwf": vwf,  # that of the parameters, not of before surgery
        "ffm": ffm,
        "baseline": baseline,
    }
    return pa.table(events), pa.table(individual)


def _truth(kind: str) -> Truth:
    return TRUTHS[one_of("synthetic cohort", kind, TRUTHS)]


def _omega(truth: Truth) -> FloatArray:
    sd = np.array(truth.omega_sd)
    return np.asarray(np.outer(sd, sd) * np.array([[1, truth.rho], [truth.rho, 1]]), dtype=np.float64)


def _baseline(n: int, generator: np.random.Generator) -> FloatArray:
    severe = generator.random(n) < SEVERE
    return np.where(severe, generator.uniform(*SEVERE_BASELINE, n), generator.uniform(*MODERATE_BASELINE, n))
