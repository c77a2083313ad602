"""Where tensors are, and questions about them that only the CPU answers at once."""

import torch
from torch import Tensor

CPU = torch.device("cpu")


def everywhere(condition: Tensor) -> bool:
    """Whether a shortcut may be taken that holds only where a condition is true throughout.

    Of a tensor on another device the answer is False, without a look at it: whoever looks waits until that
    device has done everything that it was given before. What is done without the shortcut must be right in
    all cases.
    """
    return condition.device.type == "cpu" and bool(condition.all())


def nowhere(condition: Tensor) -> bool:
    """Likewise, where it is false throughout."""
    return condition.device.type == "cpu" and not bool(condition.any())
