"""NumPyro's No-U-Turn kernel (Hoffman and Gelman 2014) on densities written in torch.

The kernel runs many independent lanes under ``jax.vmap``; what all of them ask for at once arrives in torch
as one call, so that no density is written a second time. Why NumPyro: experiments/posteriors/samplers.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medcm_cli.errors import InputError

LogDensity = Callable[[Tensor], Tensor]
"""(lanes, size) -> (lanes,), differentiable, float64; a lane does not depend on the others."""


@dataclass(frozen=True)
class Draws:
    """``x`` (draws, lanes, size); ``log_density`` and ``diverging`` (draws, lanes); ``calls``: evaluations of
    the gradient of all lanes, warm-up included."""

    x: npt.NDArray[np.float64]
    log_density: npt.NDArray[np.float64]
    diverging: npt.NDArray[np.bool_]
    calls: int


@dataclass(frozen=True)
class Sampler:
    """``warmup`` transitions, in which step sizes and mass matrices are found, then ``draws``. ``seed``: what
    random numbers follow from; ``target_accept``: mean acceptance probability that step sizes aim at;
    ``dense``: full mass matrices, in place of diagonal ones."""

    warmup: int
    draws: int
    seed: tuple[int, ...]
    target_accept: float = 0.8
    dense: bool = False


def nuts(
    log_density: LogDensity,
    start: Callable[[Tensor], Tensor],
    lanes: npt.NDArray[np.int64],
    size: int,
    sampler: Sampler,
    progress: Callable[[int, int], None] | None = None,
) -> Draws:
    """Sample every lane, with a step size and mass matrix of its own that its warm-up finds.

    :param start: makes of standard normal numbers (lanes, size) where the lanes begin.
    :param lanes: (lanes, depth) what each lane is, in whole numbers from 0; its random numbers follow from
        these and the seed, whatever other lanes there are.
    :param progress: told the number of finished transitions, warm-up included, and of divergences after it.
    :raises InputError: NumPyro is not installed.
    """
    try:
        import jax
        from numpyro.infer import NUTS
    except ImportError as error:
        raise InputError("posteriors need NumPyro: pip install 'medcm[posterior]'") from error
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")  # torch computes here, and JAX only directs
    host = _Host(log_density)
    keys, noise = _random(jax, sampler.seed, lanes, size)
    kernel = NUTS(
        potential_fn=_potential(jax, host),
        dense_mass=sampler.dense,
        target_accept_prob=sampler.target_accept,
    )
    begun = start(torch.from_numpy(np.array(noise))).numpy()
    state = kernel.init(keys, sampler.warmup, init_params=jax.numpy.asarray(begun))
    step = jax.jit(lambda state: kernel.sample(state, (), {}))  # over all lanes, as init has seen
    shape = (sampler.draws, len(lanes))
    x, log_p, diverging = np.empty((*shape, size)), np.empty(shape), np.zeros(shape, dtype=bool)
    for transition in range(sampler.warmup + sampler.draws):
        state = step(state)
        if transition >= sampler.warmup:
            draw = transition - sampler.warmup
            x[draw], log_p[draw], diverging[draw] = state.z, -state.potential_energy, state.diverging
        if progress is not None:
            progress(transition + 1, int(diverging.sum()))
    return Draws(x, log_p, diverging, host.calls)


class _Host:
    """The density and its gradient, for JAX to call: in torch, and how often."""

    def __init__(self, log_density: LogDensity) -> None:
        self._log_density, self._threads, self.calls = log_density, torch.get_num_threads(), 0

    def __call__(self, x: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Values (lanes,) and gradients (lanes, size)."""
        self.calls += 1
        # JAX calls from threads of its own, and both settings are a thread's.
        torch.set_num_threads(self._threads)
        torch.set_flush_denormal(True)
        at = torch.from_numpy(np.array(x)).requires_grad_()
        value = self._log_density(at)
        (gradient,) = torch.autograd.grad(value.sum(), at)
        return value.detach().numpy(), gradient.numpy()


def _potential(jax: Any, host: _Host) -> Any:
    """Minus the log density of one lane, differentiable by JAX."""

    def both(x: Any) -> Any:
        shapes = jax.ShapeDtypeStruct((), x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(host, shapes, x, vmap_method="broadcast_all")

    potential = jax.custom_vjp(lambda x: -both(x)[0])

    def forward(x: Any) -> Any:
        value, gradient = both(x)
        return -value, gradient

    potential.defvjp(forward, lambda gradient, upstream: (-upstream * gradient,))
    return potential


def _random(jax: Any, seed: tuple[int, ...], lanes: npt.NDArray[np.int64], size: int) -> tuple[Any, Any]:
    """A key for each lane, and standard normal numbers (lanes, size)."""

    def of_lane(lane: Any) -> tuple[Any, Any]:
        key = jax.random.key(0)
        for number in (*seed, *lane):
            key = jax.random.fold_in(key, number)
        own, first = jax.random.split(key)
        return own, jax.random.normal(first, (size,))

    # Compiled as one: one operation after another takes twice as long.
    drawn: tuple[Any, Any] = jax.jit(jax.vmap(of_lane))(lanes)
    return drawn
