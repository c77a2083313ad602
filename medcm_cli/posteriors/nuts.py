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


def nuts(
    log_density: LogDensity,
    start: Callable[[Tensor], Tensor],
    lanes: npt.NDArray[np.int64],
    size: int,
    warmup: int,
    draws: int,
    seed: tuple[int, ...],
    dense: bool,
    target_accept: float = 0.8,
    progress: Callable[[int, int], None] | None = None,
) -> Draws:
    """Sample every lane, with a step size and mass matrix of its own that its warm-up finds.

    :param start: makes of standard normal numbers (lanes, size) where the lanes begin.
    :param lanes: (lanes, depth) what each lane is, in whole numbers from 0; its random numbers follow from
        these and ``seed``, whatever other lanes there are.
    :param dense: full mass matrices, in place of diagonal ones.
    :param target_accept: mean acceptance probability that the step sizes aim at.
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
    threads, calls = torch.get_num_threads(), 0

    def host(x: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        nonlocal calls
        calls += 1
        # JAX calls from threads of its own, and both settings are a thread's.
        torch.set_num_threads(threads)
        torch.set_flush_denormal(True)
        at = torch.from_numpy(np.array(x)).requires_grad_()
        value = log_density(at)
        (gradient,) = torch.autograd.grad(value.sum(), at)
        return value.detach().numpy(), gradient.numpy()

    def both(x: Any) -> Any:
        shapes = jax.ShapeDtypeStruct((), x.dtype), jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(host, shapes, x, vmap_method="broadcast_all")

    @jax.custom_vjp
    def potential(x: Any) -> Any:
        return -both(x)[0]

    def forward(x: Any) -> Any:
        value, gradient = both(x)
        return -value, gradient

    potential.defvjp(forward, lambda gradient, upstream: (-upstream * gradient,))

    base = jax.random.key(0)
    for number in seed:
        base = jax.random.fold_in(base, number)
    keys = jax.vmap(lambda lane: _folded(jax, base, lane))(lanes)
    keys, first = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
    noise = jax.vmap(lambda key: jax.random.normal(key, (size,)))(first)
    begun = start(torch.from_numpy(np.array(noise))).numpy()
    kernel = NUTS(potential_fn=potential, dense_mass=dense, target_accept_prob=target_accept)
    state = kernel.init(keys, warmup, init_params=jax.numpy.asarray(begun))
    step = jax.jit(lambda state: kernel.sample(state, (), {}))  # over all lanes, as init has seen
    shape = (draws, len(lanes))
    x, log_p, diverging = np.empty((*shape, size)), np.empty(shape), np.zeros(shape, dtype=bool)
    for transition in range(warmup + draws):
        state = step(state)
        if transition >= warmup:
            draw = transition - warmup
            x[draw], log_p[draw], diverging[draw] = state.z, -state.potential_energy, state.diverging
        if progress is not None:
            progress(transition + 1, int(diverging.sum()))
    return Draws(x, log_p, diverging, calls)


def _folded(jax: Any, key: Any, lane: Any) -> Any:
    for number in lane:
        key = jax.random.fold_in(key, number)
    return key
