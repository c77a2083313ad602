"""Right-hand sides that medcm offers, written as those of users are (docs/extending.md)."""

from typing import Any

import torch
from torch import Tensor

from medcm_cli.pk.models.kinetics import kinetics_rate


def two_compartment_rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """dA/dt of the two-compartment model, h^-1 (docs/methods.md, "Units and symbols"); t is not used."""
    del t
    to_peripheral = p.Q / p.V1 * a.central - p.Q / p.V2 * a.peripheral
    return {"central": -p.CL / p.V1 * a.central - to_peripheral, "peripheral": to_peripheral}


def michaelis_menten_rate(t: Tensor, a: Any, p: Any) -> dict[str, Any]:
    """dA/dt = -VM C / (KM + C) with C = A / V1: elimination that saturates; from a depot where there is
    KA, with a peripheral compartment where there are Q and V2, and linear elimination, too, where there is
    CL.

    VM in amount/time, KM in amount/L (which is 1/1000 of the amount per mL), V1 in L; t is not used.
    """
    return kinetics_rate(t, a, p)


def learned_elimination_rate(t: Tensor, a: Any, p: Any, f: Any) -> dict[str, Tensor]:
    """dA/dt = -(CL / V1) f(C) A, C = A / V1 (amount/L), with f above 0 and 1 where C is 0: one compartment
    whose clearance depends on the concentration. Amounts decay and never become negative."""
    del t
    return {"central": -p.CL / p.V1 * f.elimination(a.central / p.V1) * a.central}


UNITS = 3


def neural_elimination_rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """dA/dt = -k(C) A with k = (CL / V1) exp(sum_i (UPi - DOWNi) tanh(SLOPEi C)), C = A / V1 / 1000,
    amount/mL: of results of before ``learned_elimination_rate``, whose weights were parameters."""
    del t
    level = a.central / p.V1 / 1000
    output = torch.zeros_like(level)
    for unit in range(1, UNITS + 1):
        hidden = torch.tanh(getattr(p, f"SLOPE{unit}") * level)
        output = output + (getattr(p, f"UP{unit}") - getattr(p, f"DOWN{unit}")) * hidden
    return {"central": -p.CL / p.V1 * torch.exp(output) * a.central}
