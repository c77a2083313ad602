"""Responses that are formed and lost, and how a drug changes either (Dayneka, Garg and Jusko, J Pharmacokinet
Biopharm 1993, 21:457-478).

KIN in the unit of DV per h, KOUT in 1/h, BASE = KIN / KOUT in the unit of DV, given in place of KIN; EC50 and
IC50 in amount/L, SLOPE in L/amount; EMAX, IMAX and HILL without unit.
"""

from typing import Any

from torch import Tensor

from medcm_cli.pk.models.effects import left, raised
from medcm_cli.pk.models.kinetics import concentration, eliminated, flows, of_units

_UNITS = {
    "KIN": "{model}/{time}",
    "KOUT": "1/{time}",
    "BASE": "{model}",
    "EC50": "{amount}/L",
    "IC50": "{amount}/L",
    "SLOPE": "L/{amount}",
    "EMAX": "-",
    "IMAX": "-",
    "HILL": "-",
}


def _drug_and_response(a: Any, p: Any, c: Any, formation: Any, loss: Any) -> dict[str, Any]:
    """``formation`` and ``loss``: what multiplies each."""
    formed = p.BASE * p.KOUT if hasattr(p, "BASE") else p.KIN
    return {**flows(a, p, c, eliminated(c, p)), "response": formed * formation - p.KOUT * loss * a.response}


@of_units(**_UNITS)
def inhibited_formation_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Model I: dR/dt = KIN (1 - IMAX C / (IC50 + C)) - KOUT R."""
    c = concentration(t, a, p)
    return _drug_and_response(a, p, c, left(c, p), 1.0)


@of_units(**_UNITS)
def inhibited_loss_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Model II: dR/dt = KIN - KOUT (1 - IMAX C / (IC50 + C)) R."""
    c = concentration(t, a, p)
    return _drug_and_response(a, p, c, 1.0, left(c, p))


@of_units(**_UNITS)
def stimulated_formation_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Model III: dR/dt = KIN (1 + EMAX C / (EC50 + C)) - KOUT R, or with SLOPE C in place of the fraction."""
    c = concentration(t, a, p)
    return _drug_and_response(a, p, c, 1 + raised(c, p), 1.0)


@of_units(**_UNITS)
def stimulated_loss_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Model IV: dR/dt = KIN - KOUT (1 + EMAX C / (EC50 + C)) R, or with SLOPE C in place of the fraction."""
    c = concentration(t, a, p)
    return _drug_and_response(a, p, c, 1.0, 1 + raised(c, p))


@of_units(KIN="{model}/{time}", KOUT="1/{time}", BASE="{model}")
def turnover_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """dR/dt = KIN - KOUT R, without a drug; a dose is added to R."""
    del t
    formed = p.BASE * p.KOUT if hasattr(p, "BASE") else p.KIN
    return {"response": formed - p.KOUT * a.response}


def response_at_rest(p: Any) -> dict[str, Any]:
    """Without drug: BASE, or KIN / KOUT."""
    return {"response": p.BASE if hasattr(p, "BASE") else p.KIN / p.KOUT}


def response(t: Tensor, a: Any, p: Any) -> Any:
    """What is measured."""
    del t, p
    return a.response
