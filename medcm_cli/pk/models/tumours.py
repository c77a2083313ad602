"""Tumours that grow and that a drug makes smaller.

Sizes are in the unit of DV, W0 is that at first.
"""

from typing import Any

import torch
from torch import Tensor

from medcm_cli.pk.models.kinetics import concentration, eliminated, flows, of_units

_PSI = 20.0  # how sharply exponential growth turns into linear; fixed by the authors


@of_units(KG="1/{time}", KD="L/{amount}/{time}", LAMBDA="1/{time}", W0="{model}")
def claret_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """dW/dt = KG W - KD exp(-LAMBDA t) C W, as that of log W: growth, and an effect of the concentration that
    resistance takes away from t = 0 on; without LAMBDA there is none (Claret et al., J Clin Oncol 2009,
    27:4103-4108)."""
    c = concentration(t, a, p)
    killed = p.KD * c
    if hasattr(p, "LAMBDA"):
        killed = killed * torch.exp(-p.LAMBDA * t)
    return {**flows(a, p, c, eliminated(c, p)), "logarithm": p.KG - killed}


def claret_start(p: Any) -> dict[str, Any]:
    """W0."""
    return {"logarithm": torch.log(p.W0)}


def claret_size(t: Tensor, a: Any, p: Any) -> Any:
    """W."""
    del t, p
    return torch.exp(a.logarithm)


@of_units(L0="1/{time}", L1="{model}/{time}", K1="1/{time}", K2="L/{amount}/{time}", W0="{model}")
def simeoni_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """Cells that grow, exponentially with L0 while the tumour is small and linearly with L1 later, and that a
    drug damages with K2 C; damaged ones die in three steps of mean 1/K1 (Simeoni et al., Cancer Res 2004,
    64:1094-1101)."""
    c = concentration(t, a, p)
    growing = a.tumour.clamp(min=0)  # a solver's error below 0 must not grow
    size = growing + a.damaged1 + a.damaged2 + a.damaged3
    # (1 + (L0 size / L1)^psi)^(1 / psi), whose power may be too large a number.
    ratio = torch.log((p.L0 * size / p.L1).clamp(min=torch.finfo(size.dtype).tiny))
    slowed = torch.exp(torch.logaddexp(torch.zeros_like(ratio), _PSI * ratio) / _PSI)
    damaged = p.K2 * c * growing
    return {
        **flows(a, p, c, eliminated(c, p)),
        "tumour": p.L0 * growing / slowed - damaged,
        "damaged1": damaged - p.K1 * a.damaged1,
        "damaged2": p.K1 * (a.damaged1 - a.damaged2),
        "damaged3": p.K1 * (a.damaged2 - a.damaged3),
    }


def simeoni_start(p: Any) -> dict[str, Any]:
    """W0, all of it growing."""
    return {"tumour": p.W0}


def simeoni_size(t: Tensor, a: Any, p: Any) -> Any:
    """All cells, damaged or not."""
    del t, p
    return a.tumour + a.damaged1 + a.damaged2 + a.damaged3
