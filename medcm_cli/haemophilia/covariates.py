"""The covariate graph of males aged 1-85 y: age -> height -> weight; age and blood group -> VWF:Ag
(docs/methods.md, "Covariates"): draws from it, the conditional modes by which a missing covariate is imputed,
and what follows from body size.

Height and weight are smooth tables over NHANES 2009-2012 and the CDC growth reference, interpolated by a
monotone cubic. Ages beyond 1-85 y and heights beyond 70-200 cm count as the ends of the tables.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri

from medcm_cli.data.sheet import FloatArray

AGE_RANGE = (1.0, 85.0)  # y, uniform
BLOOD_GROUP_O = 0.45  # probability

_AGE = [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 25, 45, 65, 85]
_HEIGHT_MEAN = [
    75.7,
    87.4,
    104.9,
    118.3,
    128.1,
    140.0,
    153.2,
    168.1,
    175.8,
    176.9,
    176.1,
    176.5,
    175.4,
    169.9,
]
_HEIGHT_SD = [3.2, 3.7, 4.6, 5.5, 6.3, 7.3, 7.5, 7.4, 7.4, 7.1, 7.3, 7.3, 7.4, 7.1]

# Box-Cox parameters of weight given height (LMS, Cole 1992).
_HEIGHT = [70, 85, 100, 115, 130, 145, 155, 165, 175, 185, 200]
_L = [-0.6, -0.6, -0.6, -0.6, -0.55, -0.5, -0.4, -0.3, -0.2, -0.1, -0.1]
_M = [8.6, 12.3, 16.6, 21.8, 29.2, 41.2, 52.5, 69.5, 79.5, 86.0, 91.0]
_S = [0.10, 0.10, 0.11, 0.12, 0.15, 0.18, 0.20, 0.20, 0.20, 0.20, 0.19]
_WEIGHT_Z = 3.0  # |z| at most

_VWF_MU, _VWF_SIGMA = 0.1578878, 0.3478190
_VWF_A, _VWF_B, _VWF_C = 4.11, 0.5152, 0.7008694


@dataclass(frozen=True)
class Covariates:
    """One entry per patient: ``age`` y, ``height`` cm, ``weight`` kg, ``blood_group_o`` 0 or 1, ``vwf``
    VWF:Ag IU/dL."""

    age: FloatArray
    height: FloatArray
    weight: FloatArray
    blood_group_o: FloatArray
    vwf: FloatArray


def draw_covariates(n: int, generator: np.random.Generator) -> Covariates:
    """``n`` patients from the graph, parents first."""
    age = generator.uniform(*AGE_RANGE, n)
    height = _table(_AGE, _HEIGHT_MEAN)(age) + _table(_AGE, _HEIGHT_SD)(age) * generator.standard_normal(n)
    z = truncated_normal(n, -_WEIGHT_Z, _WEIGHT_Z, generator)
    group = (generator.random(n) < BLOOD_GROUP_O).astype(np.float64)
    noise = np.exp(_VWF_MU + _VWF_SIGMA * generator.standard_normal(n))
    vwf = noise * _vwf_of_age(age) * _VWF_C**group
    return Covariates(age, height, weight_given_height(height, z), group, vwf)


def weight_given_height(height: FloatArray, z: FloatArray) -> FloatArray:
    """Weight (kg) at the standard normal score ``z``, M (1 + L S z)^(1/L), at a height (cm), clipped to
    70-200; arrays (n,)."""
    power, median, spread = _box_cox(height)
    return np.asarray(median * (1 + power * spread * z) ** (1 / power), dtype=np.float64)


def height_mode(age: FloatArray) -> FloatArray:
    """The most probable height (cm) at an age (y), the mean of the normal distribution; arrays (n,)."""
    return np.asarray(_table(_AGE, _HEIGHT_MEAN)(np.clip(age, *AGE_RANGE)), dtype=np.float64)


def weight_mode(height: FloatArray) -> FloatArray:
    """The most probable weight (kg) at a height (cm), where the density of weight itself is highest; arrays
    (n,).

    With u = (w / M)^L = 1 + L S z, log density = -z^2 / 2 + (L - 1) log(w / M) + constant, of which the
    derivative with respect to z, -z + (L - 1) S / u, is zero where L S z^2 + z = (L - 1) S. The root with u
    > 0 is written so that it holds at L = 0 too.
    """
    power, _, spread = _box_cox(height)
    root = np.sqrt(1 + 4 * power * (power - 1) * spread**2)
    return weight_given_height(height, 2 * (power - 1) * spread / (1 + root))


def vwf_mode(age: FloatArray, blood_group_o: FloatArray) -> FloatArray:
    """The most probable VWF:Ag (IU/dL) at an age (y) and blood group (1 for O, 0 for another, NaN unknown);
    arrays (n,).

    The mode exp(mu - sigma^2) of the lognormal factor, times the rest; of an unknown group, the mode of the
    mixture of the two groups in their shares.
    """
    factor = np.exp(_VWF_MU - _VWF_SIGMA**2) * _VWF_C**blood_group_o
    return np.where(np.isnan(blood_group_o), _mixed_group_mode(), factor) * _vwf_of_age(age)


def bmi(weight: FloatArray, height: FloatArray) -> FloatArray:
    """Body mass index, kg/m2, of weight (kg) and height (cm); arrays (n,)."""
    return weight / (height / 100) ** 2


def fat_free_mass(age: FloatArray, weight: FloatArray, height: FloatArray) -> FloatArray:
    """Fat-free mass (kg) of males of an age (y), weight (kg) and height (cm) (Al-Sallami et al. 2015);
    arrays (n,)."""
    with np.errstate(divide="ignore", over="ignore"):  # at birth, 0.12 / inf
        maturation = 0.88 + 0.12 / (1 + (age / 13.4) ** -12.7)
    return np.asarray(maturation * 9270 * weight / (6680 + 216 * bmi(weight, height)), dtype=np.float64)


def truncated_normal(n: int, low: float, high: float, generator: np.random.Generator) -> FloatArray:
    """``n`` standard normal numbers within [low, high], by inversion."""
    below, above = ndtr(low), ndtr(high)
    return np.asarray(ndtri(below + (above - below) * generator.random(n)), dtype=np.float64)


def _box_cox(height: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """L, M (kg) and S of weight at a height (cm)."""
    clipped = np.clip(height, _HEIGHT[0], _HEIGHT[-1])
    power, median, spread = (_table(_HEIGHT, values)(clipped) for values in (_L, _M, _S))
    return power, median, spread


def _vwf_of_age(age: FloatArray) -> FloatArray:
    """The part of VWF:Ag that age decides, IU/dL."""
    return np.asarray(np.exp(_VWF_A + _VWF_B * np.clip(age, 40, AGE_RANGE[1]) / 45), dtype=np.float64)


@functools.cache
def _mixed_group_mode() -> float:
    """Mode of the lognormal factor of VWF:Ag times that of the blood group, the group unknown. Age only
    scales it."""

    def negative_density(x: float) -> float:
        score = (np.log(x / np.array([1.0, _VWF_C])) - _VWF_MU) / _VWF_SIGMA
        return -float([1 - BLOOD_GROUP_O, BLOOD_GROUP_O] @ np.exp(-(score**2) / 2)) / x

    mode = np.exp(_VWF_MU - _VWF_SIGMA**2)  # of the groups other than O; that of O is _VWF_C times it
    result = minimize_scalar(
        negative_density, bounds=(_VWF_C * mode, mode), method="bounded", options={"xatol": 1e-10}
    )
    return float(result.x)


def _table(x: list[int], y: list[float]) -> PchipInterpolator:
    return PchipInterpolator(np.asarray(x, dtype=np.float64), np.asarray(y))
