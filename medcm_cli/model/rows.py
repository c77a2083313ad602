"""Trained numbers that are population parameters: on which scale each is trained, between which bounds, and
where it begins."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medcm_cli.checks import number, shown
from medcm_cli.errors import InputError
from medcm_cli.model.coefficients import Coefficient, coefficient


@dataclass(frozen=True)
class Row:
    """The number at ``place`` of the trained values ``name``: the softplus of it is a parameter above 0, or
    its tanh is a correlation. In the unit in which it is trained the parameter stays between ``lower`` and
    ``upper``, and begins at ``begin`` (None: where it is drawn)."""

    name: str
    place: int
    lower: float = 0.0
    upper: float = math.inf
    begin: float | None = None
    correlation: bool = False

    @property
    def bounded(self) -> bool:
        """Whether it has bounds beside those of its kind."""
        return self.lower > (-1.0 if self.correlation else 0.0) or self.upper < (
            1.0 if self.correlation else math.inf
        )

    @property
    def raw_begin(self) -> float:
        """What is trained of ``begin``."""
        assert self.begin is not None
        return math.atanh(self.begin) if self.correlation else raw_of(self.begin)

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Into initial values, in place, where it begins."""
        values[self.name].view(-1, values[self.name].shape[-1])[self.place] = self.raw_begin


def raw_of(value: float) -> float:
    """What softplus gives a value above 0 of, by a form that neither overflows nor cancels."""
    return value + math.log(-math.expm1(-value))


def raws_of(value: Tensor) -> Tensor:
    """The same of tensors, elementwise."""
    return value + torch.log(-torch.expm1(-value))


def row_of(name: str, place: int, given: Coefficient | None, unit: float = 1.0) -> Row:
    """Of a parameter above 0 that is trained in parts of ``unit``, as ``given`` or free."""
    if given is None:
        return Row(name, place)
    return Row(name, place, given.lower / unit, given.upper / unit, given.begin / unit)


def correlation_row(name: str, place: int, given: Coefficient | None) -> Row:
    """Of a correlation."""
    if given is None:
        return Row(name, place, -1.0, 1.0, None, correlation=True)
    return Row(name, place, given.lower, given.upper, given.begin, correlation=True)


def read_initial(
    initial: object,
    random_effects: Sequence[str],
    components: Sequence[str],
    typical: Mapping[str, float],
    occasions: Sequence[str] = (),
) -> dict[str, Coefficient]:
    """Option ``initial``, by the names of population parameters: omega_CL, rho_CL_V1, sigma_additive, and
    what else the network has.

    :param typical: names of typical parameters and coefficients, and what each is above. :param occasions:
        what varies between them, of which it is pi_CL and rho_pi_CL_V1.
    :raises InputError: another name, or a value that is not as expected.
    """
    if not isinstance(initial, Mapping):
        raise InputError(f"initial is {shown(initial)}; expected values by name, as in {_EXAMPLE}")
    omegas = {f"omega_{name}" for name in random_effects}
    sigmas = {f"sigma_{name}" for name in components}
    omegas |= {f"pi_{name}" for name in occasions}
    pairs = _pairs(random_effects) | _pairs(occasions, "rho_pi")
    given: dict[str, Coefficient] = {}
    for key, value in initial.items():
        where, name = f"initial.{key}", pairs.get(str(key), str(key))
        if name in given:
            raise InputError(f"{where}: this correlation is there twice")
        if name in typical:
            given[name] = coefficient(where, name, value, known=False, lower=typical[name])
        elif name in omegas | sigmas:
            given[name] = coefficient(where, name, value, known=False, lower=0.0)
        elif name in pairs:
            given[name] = _correlation(where, name, value)
        else:
            there = (*typical, *sorted(omegas), *sorted(set(pairs.values())), *sorted(sigmas))
            raise InputError(f"{where}: no such parameter; expected some of {', '.join(there)}")
    return given


_EXAMPLE = "initial='{CL: 4, omega_CL: 0.3, sigma_additive: {fixed: 2}, V1: {initial: 30, upper: 90}}'"


def _pairs(names: Sequence[str], kind: str = "rho") -> dict[str, str]:
    """rho_A_B and rho_B_A -> the name of the correlation of A and B, whose order is that of ``names``."""
    found: dict[str, str] = {}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            name = f"{kind}_{first}_{second}"
            found |= {name: name, f"{kind}_{second}_{first}": name}
    return found


def _correlation(where: str, name: str, value: object) -> Coefficient:
    options = dict(value) if isinstance(value, Mapping) else {"initial": value}
    for end, bound in (("lower", -1.0), ("upper", 1.0)):
        number(f"{where}.{end}", options.setdefault(end, bound), least=-1, most=1)
    return coefficient(where, name, options, known=False)
