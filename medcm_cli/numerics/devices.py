"""Where tensors are: devices that there are, and questions that only the CPU answers at once."""

import torch
from torch import Tensor

from medcm_cli.errors import InputError

CPU = torch.device("cpu")


def device_of(name: str) -> torch.device:
    """The device that option ``device`` names: cpu, cuda, mps, or auto, which is cuda where there is one.

    :raises InputError: there is no such device.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    if not there[name]:
        found = ", ".join(other for other in there if there[other])
        raise InputError(
            f"device={name}: torch {torch.__version__} finds no such device here; it finds {found}"
        )
    return torch.device(name)


def described(device: torch.device) -> str:
    """Its kind and, where torch knows it, its name."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


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
