"""An example of a right-hand side that is learned: a user's function is written and named like this one."""

from collections.abc import Mapping

import torch
from torch import Tensor

UNITS = 3


def neural_elimination_rate(t: Tensor, amounts: Tensor, z: Mapping[str, Tensor]) -> Tensor:
    """dA/dt = -k(C) A with k = (CL / V1) exp(sum_i (UPi - DOWNi) tanh(SLOPEi C)), C = A / V1 / 1000,
    amount/mL.

    One compartment whose elimination depends on the level through ``UNITS`` hidden units. The weights are
    ordinary parameters UP1, DOWN1, SLOPE1, ..., trained as global parameters of the network, which are above
    0: an output weight is the difference of two. k is above 0 and bounded, so amounts decay and never
    become negative; CL / V1 is the rate constant as the level tends to 0. t is not used.
    """
    del t
    level = amounts / z["V1"] / 1000
    output = torch.zeros_like(level)
    for unit in range(1, UNITS + 1):
        hidden = torch.tanh(z[f"SLOPE{unit}"] * level)
        output = output + (z[f"UP{unit}"] - z[f"DOWN{unit}"]) * hidden
    return -z["CL"] / z["V1"] * torch.exp(output) * amounts
