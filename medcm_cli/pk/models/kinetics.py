"""What becomes of a drug: compartments, elimination, a metabolite.

CL, CLF, CLM, Q in L/h, V1, V2, V1M in L, KA in 1/h, VM in amount/h, KM in amount/L, BASE in amount/L.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Rate = Callable[[Tensor, Any, Any], dict[str, Any]]


def of_units(**units: str) -> Callable[[Rate], Rate]:
    """Says what units the parameters of a rate function have, in braces ``time`` and ``amount``, those of the
    data, and ``model``, that of DV (``OdeModel.units``)."""

    def said(rate: Rate) -> Rate:
        vars(rate)["units"] = units
        return rate

    return said


def concentration(t: Tensor, a: Any, p: Any) -> Any:
    """In the central compartment, amount/L."""
    del t
    return a.central / p.V1


def eliminated(c: Any, p: Any) -> Any:
    """Of a drug at a concentration ``c``, amount/h: CL c, VM c / (KM + c), or both, as there are
    parameters."""
    if not hasattr(p, "VM"):
        return p.CL * c
    saturable = p.VM * c / (p.KM + c)
    return saturable + p.CL * c if hasattr(p, "CL") else saturable


def flows(a: Any, p: Any, c: Any, leaving: Any) -> dict[str, Any]:
    """dA/dt of a drug whose concentration is ``c`` and of which ``leaving``, amount/h, leaves the central
    compartment: with a depot where there is KA, a peripheral compartment where there are Q and V2."""
    change = {}
    central = -leaving
    if hasattr(p, "KA"):
        absorbed = p.KA * a.depot
        change["depot"] = -absorbed
        central = central + absorbed
    change["central"] = central
    if hasattr(p, "Q"):
        over = p.Q * (c - a.peripheral / p.V2)
        change["central"] = central - over
        change["peripheral"] = over
    return change


def kinetics_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """One or two compartments, with first-order absorption or without, elimination linear, saturable or
    both."""
    c = concentration(t, a, p)
    return flows(a, p, c, eliminated(c, p))


@of_units(BASE="{amount}/L")
def endogenous_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """A substance that is formed at a constant rate, CL BASE, so that its concentration without doses is
    BASE."""
    c = concentration(t, a, p)
    return flows(a, p, c, p.CL * (c - p.BASE))


def endogenous_at_rest(p: Any) -> dict[str, Any]:
    """Without doses."""
    peripheral = {"peripheral": p.BASE * p.V2} if hasattr(p, "Q") else {}
    return {"central": p.BASE * p.V1, **peripheral}


@of_units(CLF="L/{time}", CLM="L/{time}", V1M="L")
def metabolite_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """A drug that is eliminated with CLF to its metabolite, and with CL, where there is that, in other ways;
    the metabolite is eliminated with CLM. Amounts of both are in one molar unit, or CLM and V1M are as many
    times those values as the metabolite weighs less."""
    c = concentration(t, a, p)
    formed = p.CLF * c
    leaving = formed + eliminated(c, p) if hasattr(p, "CL") or hasattr(p, "VM") else formed
    return {**flows(a, p, c, leaving), "metabolite": formed - p.CLM / p.V1M * a.metabolite}


def metabolite_concentration(t: Tensor, a: Any, p: Any) -> Any:
    """amount/L."""
    del t
    return a.metabolite / p.V1M
