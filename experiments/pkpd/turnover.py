"""Warfarin by mouth, and the prothrombin complex activity (PCA) whose formation it inhibits."""

from typing import Any

from torch import Tensor


def rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """Jusko and Ko 1994, model I, with full inhibition: dR/dt = kin (1 - C / (C50 + C)) - kout R."""
    del t
    concentration = a.central / p.V1
    kept = p.C50 / (p.C50 + concentration)
    return {
        "depot": -p.KA * a.depot,
        "central": p.KA * a.depot - p.CL / p.V1 * a.central,
        "response": p.KOUT * (p.E0 * kept - a.response),
    }


def at_rest(p: Any) -> dict[str, Tensor]:
    """The response before any drug."""
    return {"response": p.E0}
