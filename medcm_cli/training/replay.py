"""An epoch as one CUDA graph: what Python and the driver do for each of its hundreds of small kernels, which
takes longer than the kernels, is done once, and the epochs after it are replayed."""

import contextlib
from collections.abc import Callable

import torch

from medcm_cli.model import Model
from medcm_cli.objectives.base import Objective

WARM = 3
"""Epochs that are run before one is captured: what is made once, and kept, is made in them."""


def repeats(model: Model, objective: Objective, device: torch.device) -> bool:
    """Whether every epoch, on a device that has graphs, is the same sequence of operations, as far as can be
    told before it is tried: not where a search, or a solver that chooses its steps, ends when it has to."""
    return (
        device.type == "cuda" and type(objective).refresh is Objective.refresh and not model.pk.needs_double
    )


def captured(epoch: Callable[[], None]) -> Callable[[], None] | None:
    """What does to the very same tensors as ``epoch`` does, which is not run; None where that waits for the
    device, or copies from the host, and so cannot be captured."""
    stream, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            epoch()
    except RuntimeError:  # of CUDA, or torch.AcceleratorError, which is one
        torch.cuda.set_stream(stream)  # which torch leaves at another where a capture has failed
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize()
        return None
    return graph.replay
