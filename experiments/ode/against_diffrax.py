"""A prediction with its gradient and an optimiser's step, by diffrax and optax: the same task as in
``medcm benchmark --ode``, one thread, float32, rtol = atol = 1e-6.

    python experiments/ode/against_diffrax.py     with the packages of requirements.txt, in their own venv

As diffrax's documentation advises: one trajectory written out and vmapped, everything in one jit, Tsit5 with
``PIDController``, gradients by ``RecursiveCheckpointAdjoint`` (checkpointed backpropagation), each trajectory
with its own steps. The time of compilation is apart. No step crosses the end of the infusion of a minute
(``jump_ts``); observations are interpolated.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

SUBJECTS, SAMPLES, MINUTE = 60, 3, 1 / 60
TWO = {"CL": 0.1, "V1": 2.0, "Q": 0.15, "V2": 0.75}
SATURABLE = {"VM": 60.0, "KM": 300.0, "V1": 2.0}


def two(t, y, args):
    """Amounts in two compartments."""
    z, dose = args
    cl, v1, q, v2 = z
    to_peripheral = q / v1 * y[0] - q / v2 * y[1]
    inflow = jnp.where(t < MINUTE, dose / MINUTE, 0.0)
    return jnp.stack([inflow - cl / v1 * y[0] - to_peripheral, to_peripheral])


def saturable(t, y, args):
    """The amount in one compartment."""
    z, dose = args
    vm, km, v1 = z
    level = y / v1
    return jnp.where(t < MINUTE, dose / MINUTE, 0.0) - vm * level / (km + level)


def one(rate, size, z, dose, hours):
    """Amounts of one trajectory at its three observations."""
    control = diffrax.PIDController(rtol=1e-6, atol=1e-6)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(rate),
        diffrax.Tsit5(),
        0.0,
        hours[-1],
        None,
        jnp.zeros(size),
        (z, dose),
        stepsize_controller=diffrax.ClipStepSizeController(control, jump_ts=jnp.array([MINUTE])),
        saveat=diffrax.SaveAt(ts=hours),
        adjoint=diffrax.RecursiveCheckpointAdjoint(),
        max_steps=256,
    ).ys[:, 0]


def task(rate, values, size, fits):
    """A step of Adam on the logarithms of parameters, and its arguments."""
    g = np.random.default_rng(0)
    logs = np.tile(np.log(list(values.values()))[:, None, None, None], (1, SAMPLES, SUBJECTS, fits))
    logs[:2] += 0.15 * g.standard_normal(logs[:2].shape)
    logs = jnp.asarray(logs.reshape(len(values), -1).T, jnp.float32)
    dose = np.broadcast_to(1500 + 1000 * g.random((1, SUBJECTS, fits)), (SAMPLES, SUBJECTS, fits))
    hours = np.array([4.0, 24.0, 48.0]) + g.random((SUBJECTS, fits, 3)) - 0.5
    hours = np.broadcast_to(hours, (SAMPLES, SUBJECTS, fits, 3)).reshape(-1, 3)
    dose, hours = jnp.asarray(dose.reshape(-1), jnp.float32), jnp.asarray(hours, jnp.float32)
    adam = optax.adam(1e-3)

    def value(logs):
        z = jnp.exp(logs)
        amounts = jax.vmap(lambda z, d, h: one(rate, size, z, d, h))(z, dose, hours)
        return (amounts / (1000 * z[:, list(values).index("V1"), None])).sum()

    @jax.jit
    def step(logs, state):
        total, gradient = jax.value_and_grad(value)(logs)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(logs, updates), state, total

    return step, logs, adam.init(logs)


def main(repeats):
    """Rows of a Markdown table."""
    print("| model | fits | CPU ms | compilation, CPU s |\n|---|---|---|---|")
    models = {"two compartments": (two, TWO, 2), "Michaelis-Menten": (saturable, SATURABLE, 1)}
    for name, (rate, values, size) in models.items():
        for fits in (100, 10):
            step, *given = task(rate, values, size, fits)
            begun = time.process_time()
            jax.block_until_ready(step(*given))
            compiled, least = time.process_time() - begun, float("inf")
            for _ in range(repeats):
                begun = time.process_time()
                jax.block_until_ready(step(*given))
                least = min(least, time.process_time() - begun)
            print(f"| {name} | {fits} | {least * 1e3:.1f} | {compiled - least:.1f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
