"""What a drug does at once, as a function of its concentration.

EC50 and IC50 in amount/L; E0 and EMAX in the unit of DV, SLOPE in that per amount/L; IMAX, a share, and HILL
without unit; KE0 in 1/h.
"""

from typing import Any

import torch
from torch import Tensor

from medcm_cli.pk.models.kinetics import concentration, eliminated, flows, of_units


def saturation(c: Tensor, half: Tensor, p: Any) -> Tensor:
    """c^HILL / (half^HILL + c^HILL), with HILL 1 where there is none."""
    if not hasattr(p, "HILL"):
        return c / (half + c)
    # A concentration of 0 has a logarithm by this, and one that a solver made negative is 0.
    above = c.clamp(min=torch.finfo(c.dtype).tiny)
    return torch.sigmoid(p.HILL * (torch.log(above) - torch.log(half)))


def raised(c: Tensor, p: Any) -> Any:
    """What a drug adds, at a concentration: SLOPE c, or EMAX times a saturation."""
    return p.SLOPE * c if hasattr(p, "SLOPE") else p.EMAX * saturation(c, p.EC50, p)


def left(c: Tensor, p: Any) -> Any:
    """The share that a drug leaves: 1 - IMAX times a saturation, with IMAX 1 where there is none."""
    taken = saturation(c, p.IC50, p)
    return 1 - (p.IMAX * taken if hasattr(p, "IMAX") else taken)


_UNITS = {
    "EC50": "{amount}/L",
    "IC50": "{amount}/L",
    "E0": "{model}",
    "EMAX": "{model}",
    "SLOPE": "{model}/({amount}/L)",
    "IMAX": "-",
    "HILL": "-",
    "KE0": "1/{time}",
}


@of_units(**_UNITS)
def effect_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """A drug and, with KE0, the concentration at its site of effect, which follows that in the central
    compartment, dCe/dt = KE0 (C - Ce) (Sheiner et al., Clin Pharmacol Ther 1979, 25:358-371)."""
    c = concentration(t, a, p)
    change = flows(a, p, c, eliminated(c, p))
    return {**change, "effect": p.KE0 * (c - a.effect)} if hasattr(p, "KE0") else change


def effect(t: Tensor, a: Any, p: Any) -> Any:
    """E0 + EMAX C^HILL / (EC50^HILL + C^HILL), E0 + SLOPE C or, with IC50, E0 (1 - IMAX C^HILL / (IC50^HILL
    + C^HILL)).

    C is the concentration at the site of effect, or the central one without KE0; E0 is 0 where there is none
    (Holford and Sheiner, Clin Pharmacokinet 1981, 6:429-453).
    """
    c = a.effect if hasattr(p, "KE0") else concentration(t, a, p)
    if hasattr(p, "IC50"):
        return p.E0 * left(c, p)
    return p.E0 + raised(c, p) if hasattr(p, "E0") else raised(c, p)
