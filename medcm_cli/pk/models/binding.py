"""Drugs that bind to a target which is formed and lost: target-mediated drug disposition.

Drug and target are in one molar unit. KON in L/amount/h, KOFF, KDEG (free target) and KINT (complex) in 1/h;
R0, the target without drug, and KSS = (KOFF + KINT) / KON in amount/L.
"""

from typing import Any

import torch
from torch import Tensor

from medcm_cli.pk.models.kinetics import concentration, eliminated, flows, of_units

_UNITS = {
    "KON": "L/{amount}/{time}",
    **dict.fromkeys(("KOFF", "KDEG", "KINT"), "1/{time}"),
    **dict.fromkeys(("R0", "KSS"), "{amount}/L"),
}


@of_units(**_UNITS)
def binding_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Free drug (amount), free target and complex (amount/L), with the rates of binding and of its reverse
    (Mager and Jusko, J Pharmacokinet Pharmacodyn 2001, 28:507-532)."""
    c = concentration(t, a, p)
    bound = p.KON * c * a.target - p.KOFF * a.complex
    return {
        **flows(a, p, c, eliminated(c, p) + bound * p.V1),
        "target": p.KDEG * (p.R0 - a.target) - bound,
        "complex": bound - p.KINT * a.complex,
    }


@of_units(**_UNITS)
def quasi_steady_binding_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """All of the drug, free and bound (amount), and all of the target (amount/L): binding is so fast that the
    complex follows both (Gibiansky et al., J Pharmacokinet Pharmacodyn 2008, 35:573-591)."""
    c = free_concentration(t, a, p)
    complex_ = a.target * c / (p.KSS + c)
    return {
        **flows(a, p, c, eliminated(c, p) + p.KINT * complex_ * p.V1),
        "target": p.KDEG * (p.R0 - a.target) - (p.KINT - p.KDEG) * complex_,
    }


def target_at_rest(p: Any) -> dict[str, Any]:
    """Without drug."""
    return {"target": p.R0}


def free_concentration(t: Tensor, a: Any, p: Any) -> Any:
    """Of a drug whose central compartment has the free and the bound, amount/L: where C + target C / (KSS +
    C) is all of it."""
    total = concentration(t, a, p)
    less = total - a.target - p.KSS
    root = torch.sqrt(less * less + 4 * p.KSS * total.clamp(min=0))
    # Of two nearly equal numbers the difference would lose digits.
    below = less < 0
    return torch.where(below, 2 * p.KSS * total / torch.where(below, root - less, 1), (root + less) / 2)
