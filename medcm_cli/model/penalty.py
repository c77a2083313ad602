"""Priors of the population as they are configured, and what they add to an objective, whose optimum is then
the mode of the population's posterior (MAP)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medcm_cli.checks import number, shown
from medcm_cli.errors import InputError
from medcm_cli.model.model import Model, Values
from medcm_cli.numerics.normal import LOG_2PI
from medcm_cli.numerics.triangular import Lower, covariance, log_det, solve_lower, total

_KINDS = "{normal: [MEAN, SD]}, {log_normal: [MEDIAN, SD OF THE LOG]} or {half_normal: SD}"


@dataclass(frozen=True)
class Prior:
    """Of a number: ``normal`` (centre, sd); ``log_normal``, of its logarithm, whose density this is; or
    ``half_normal``, of one above 0."""

    kind: str
    centre: float
    sd: float

    def log_density(self, x: Tensor) -> Tensor:
        """Elementwise, constants included."""
        if self.kind == "log_normal":
            white = (torch.log(x) - math.log(self.centre)) / self.sd
        else:
            white = (x - self.centre) / self.sd
        half = math.log(2) if self.kind == "half_normal" else 0.0
        return half - 0.5 * (white * white + LOG_2PI) - math.log(self.sd)


@dataclass(frozen=True)
class Priors:
    """``numbers``: name -> prior, of typical parameters at the ``references`` of covariates, of coefficients,
    of ``omega_CL``, ``pi_CL``, ``sigma_additive`` and their like, in the units of the data; ``wishart``: a
    matrix M and degrees of freedom, Omega is inverse-Wishart with scale matrix df M; ``lkj``: the shape of
    that of Omega's correlations."""

    numbers: Mapping[str, Prior] = field(default_factory=dict)
    wishart: tuple[Sequence[Sequence[float]], float] | None = None
    lkj: float | None = None
    references: Mapping[str, float] = field(default_factory=dict)

    def penalty(self, model: Model, values: Values) -> Tensor:
        """Minus the log density of each fit, (B,). :raises InputError: a name of nothing that is
        estimated."""
        like = next(iter(values.values()))
        terms = [like.new_zeros(like.shape[-1:])]
        known = self._known(model, values) if self.numbers else {}
        for name, prior in self.numbers.items():
            if name not in known:
                raise InputError(
                    f"priors.{name}: nothing of this name is estimated; expected some of {', '.join(known)}, "
                    "omega, rho"
                )
            terms.append(-prior.log_density(known[name]))
        if self.wishart is not None or self.lkj is not None:
            if model.random_effects.fixed is not None:
                raise InputError("priors: Omega is fixed, and has no prior")
            terms += self._of_omega(model, model.omega_cholesky(values))
        return total(terms)

    def _known(self, model: Model, values: Values) -> dict[str, Tensor]:
        like = next(iter(values.values()))
        shape = 1, 1, like.shape[-1]
        at = {name: like.new_full(shape, value) for name, value in self.references.items()}
        typical = model.network.typical(values, {n: at[n] for n in model.network.inputs})
        found = {name: zeta.reshape(-1, like.shape[-1])[0] for name, zeta in typical.items()}
        known = model.network.values_of(values)
        found = {name: zeta for name, zeta in found.items() if not _is_number(known.get(name, zeta))}
        found |= {name: value for name, (value, _, _) in model.coefficients(values).items()}
        for group in model.groups:
            lower = group.cholesky(values)
            for place in group.free:
                sd = total([entry * entry for entry in lower[place]]).sqrt()
                found[f"{group.of}_{group.names[place]}"] = sd
        sigmas = model.error.sigmas(values)
        return found | {f"sigma_{name}": sigmas[name] for name in model.error.free}

    def _of_omega(self, model: Model, lower: Lower) -> list[Tensor]:
        size, terms = len(lower), list[Tensor]()
        if self.wishart is not None:
            matrix, df = self.wishart
            if len(matrix) != size or df <= size - 1:
                raise InputError(
                    f"priors.omega.inverse_wishart: expected a row for each of "
                    f"{', '.join(model.random_effects.names)}, and more than {size - 1} degrees of freedom"
                )
            terms.append(-wishart_log_density(lower, matrix, df))
        if self.lkj is not None:
            if len(model.random_effects.pairs) < size * (size - 1) // 2 or size < 2:
                raise InputError("priors.rho.lkj is of all correlations; expected omega=full")
            sd = [row[i].sqrt() for i, row in enumerate(covariance(lower))]
            log_c = log_det(lower) - 2 * total([torch.log(value) for value in sd])
            terms.append((1 - self.lkj) * log_c + lkj_constant(size, self.lkj))
        return terms


def _is_number(value: Tensor | float) -> bool:
    """Whether it is the same of every fit, as what is known is."""
    return not isinstance(value, Tensor) or value.ndim == 0


def wishart_log_density(lower: Lower, matrix: Sequence[Sequence[float]], df: float) -> Tensor:
    """log density of Omega = L L' under the inverse-Wishart distribution with scale matrix df M: the prior
    that NONMEM's NWPRI has of $OMEGAP and $OMEGAPD."""
    size = len(lower)
    scale = df * torch.tensor(matrix, dtype=torch.float64, device="cpu")
    root = torch.linalg.cholesky(scale)
    gamma = sum(math.lgamma((df - i) / 2) for i in range(size)) + size * (size - 1) / 4 * math.log(math.pi)
    constant = df * float(root.diagonal().log().sum()) - df * size / 2 * math.log(2) - gamma
    zero = torch.zeros_like(lower[0][0])
    traces = [solve_lower(lower, [zero + entry for entry in column]) for column in root.T.tolist()]
    trace = total([x * x for column in traces for x in column])
    return constant - 0.5 * (df + size + 1) * log_det(lower) - 0.5 * trace


def lkj_constant(size: int, shape: float) -> float:
    """log of what |C|^(shape - 1) is divided by to be a density (Lewandowski, Kurowicka and Joe 2009, Eq.
    16)."""
    result = 0.0
    for k in range(1, size):
        left = size - k
        b = shape + (left - 1) / 2
        result += (2 * shape - 2 + left) * left * math.log(2)
        result += left * (2 * math.lgamma(b) - math.lgamma(2 * b))
    return result


def priors_of(given: object, references: Mapping[str, float]) -> Priors | None:
    """From option ``priors``; None where there are none.

    :param references: of the covariates. :raises InputError: what is no prior.
    """
    if not isinstance(given, Mapping):
        raise InputError(
            f"priors is {shown(given)}; expected names and their priors, as in {{CL: {{log_normal: [4, "
            "0.2]}, omega_CL: {half_normal: 0.5}}"
        )
    if not given:
        return None
    numbers, wishart, lkj = dict[str, Prior](), None, None
    for name, option in given.items():
        where = f"priors.{name}"
        kind, value = _one(where, option, name in ("omega", "rho"))
        if name == "omega":
            wishart = _wishart(f"{where}.{kind}", value) if kind == "inverse_wishart" else None
        elif name == "rho":
            lkj = float(number(f"{where}.{kind}", value, above=0)) if kind == "lkj" else None
        else:
            numbers[str(name)] = _prior(f"{where}.{kind}", kind, value)
        if (name == "omega" and wishart is None) or (name == "rho" and lkj is None):
            raise InputError(
                f"{where} is {shown(option)}; expected "
                + ("{inverse_wishart: {omega: MATRIX, df: NUMBER}}" if name == "omega" else "{lkj: SHAPE}")
            )
    doubled = [name for name in numbers if name.startswith("omega_")] if wishart is not None else []
    if doubled or (wishart is not None and lkj is not None):
        raise InputError(f"priors.{doubled[0] if doubled else 'rho'}: priors.omega has one of it already")
    return Priors(numbers, wishart, lkj, references)


def _one(where: str, option: object, of_omega: bool) -> tuple[str, object]:
    if not isinstance(option, Mapping) or len(option) != 1:
        raise InputError(
            f"{where} is {shown(option)}; expected "
            + ("{inverse_wishart: ...} of omega, {lkj: SHAPE} of rho" if of_omega else _KINDS)
        )
    ((kind, value),) = option.items()
    return str(kind), value


def _prior(where: str, kind: str, value: object) -> Prior:
    if kind == "half_normal":
        return Prior(kind, 0.0, float(number(where, value, above=0)))
    if kind not in ("normal", "log_normal"):
        raise InputError(f"{where}: no such prior; expected {_KINDS}")
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InputError(f"{where} is {shown(value)}; expected two numbers, as in [4, 0.2]")
    above = 0.0 if kind == "log_normal" else -math.inf
    return Prior(kind, float(number(where, value[0], above=above)), float(number(where, value[1], above=0)))


def _wishart(where: str, value: object) -> tuple[Sequence[Sequence[float]], float] | None:
    if not isinstance(value, Mapping) or set(value) != {"omega", "df"}:
        return None
    matrix = value["omega"]
    try:
        dense = torch.tensor(matrix, dtype=torch.float64, device="cpu")
        sound = dense.ndim == 2 and bool((dense == dense.mT).all())
        sound = sound and int(torch.linalg.cholesky_ex(dense).info) == 0
    except (TypeError, ValueError, RuntimeError):
        sound = False
    if not sound or not isinstance(matrix, list | tuple):
        raise InputError(f"{where}.omega is {shown(matrix)}; expected a positive definite matrix")
    return matrix, float(number(f"{where}.df", value["df"], above=0))
