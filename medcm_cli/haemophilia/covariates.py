"""The covariate graph of males aged 1-85 y: age -> height -> weight; age and blood group -> VWF:Ag
(docs/methods.md, "Covariates"): draws from it, the typical values by which a missing covariate is imputed,
and what follows from body size.

Height and weight are tables of the published program's own model, interpolated by a monotone cubic. Ages
beyond 1-85 y and heights beyond 70-200 cm count as these ends.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medcm_cli.data.sheet import FloatArray

if TYPE_CHECKING:  # scipy takes half a second, which few commands need
    from scipy.interpolate import PchipInterpolator

AGE_RANGE = (1.0, 85.0)  # y, uniform
BLOOD_GROUP_O = 0.45  # probability

_AGE = [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 25, 35, 45, 55, 65, 75, 85]
_HEIGHT_MEAN = [
    *(81.80, 91.21, 100.17, 108.11, 120.70, 131.13, 142.63, 156.40, 169.48),
    *(176.12, 176.93, 176.22, 176.25, 176.44, 176.21, 174.91, 172.58, 169.84),
]
_HEIGHT_SD = [
    *(3.71, 3.84, 4.46, 5.08, 6.32, 7.57, 7.81, 7.73, 7.65),
    *(7.58, 7.50, 7.23, 7.26, 7.29, 7.32, 7.35, 7.37, 7.83),
]

# Box-Cox parameters of weight given height (LMS, Cole 1992).
_HEIGHT = [75, 85, 100, 115, 130, 145, 155, 160, 165, 170, 175, 180, 190, 200]
_HEIGHT_RANGE = (70.0, 200.0)  # cm
_L = [-3.29, -3.1, -2.4, -1.98, -1.43, -0.87, -0.6, -0.48, -0.39, -0.31, -0.31, -0.3, -0.28, -0.26]
_M = [10.6, 12.6, 16.2, 21.1, 28.8, 42.6, 56.1, 63.8, 71.4, 78.7, 80.5, 82.1, 85.3, 88.3]
_S = [0.083, 0.086, 0.1, 0.116, 0.142, 0.174, 0.193, 0.201, 0.206, 0.209, 0.209, 0.21, 0.21, 0.21]
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


def weight_median(height: FloatArray) -> FloatArray:
    """The median weight (kg) at a height (cm); arrays (n,). The published program fills in the median of
    weight, where it takes the mode of height and of VWF:Ag."""
    return weight_given_height(height, np.zeros_like(height))


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
    from scipy.special import ndtr, ndtri

    below, above = ndtr(low), ndtr(high)
    return np.asarray(ndtri(below + (above - below) * generator.random(n)), dtype=np.float64)


def _box_cox(height: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """L, M (kg) and S of weight at a height (cm)."""
    clipped = np.clip(height, *_HEIGHT_RANGE)
    power, median, spread = (_table(_HEIGHT, values)(clipped) for values in (_L, _M, _S))
    return power, median, spread


def _vwf_of_age(age: FloatArray) -> FloatArray:
    """The part of VWF:Ag that age decides, IU/dL."""
    return np.asarray(np.exp(_VWF_A + _VWF_B * np.clip(age, 40, AGE_RANGE[1]) / 45), dtype=np.float64)


@functools.cache
def _mixed_group_mode() -> float:
    """Mode of the lognormal factor of VWF:Ag times that of the blood group, the group unknown. Age only
    scales it."""
    from scipy.optimize import minimize_scalar

    def negative_density(x: float) -> float:
        score = (np.log(x / np.array([1.0, _VWF_C])) - _VWF_MU) / _VWF_SIGMA
        return -float([1 - BLOOD_GROUP_O, BLOOD_GROUP_O] @ np.exp(-(score**2) / 2)) / x

    mode = np.exp(_VWF_MU - _VWF_SIGMA**2)  # of the groups other than O; that of O is _VWF_C times it
    result = minimize_scalar(
        negative_density, bounds=(_VWF_C * mode, mode), method="bounded", options={"xatol": 1e-10}
    )
    return float(result.x)


def _table(x: list[int], y: list[float]) -> "PchipInterpolator":
    from scipy.interpolate import PchipInterpolator

    return PchipInterpolator(np.asarray(x, dtype=np.float64), np.asarray(y))
