"""Speed of models given as dA/dt, as ratios within one run (``medcm benchmark --ode``)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medcm_cli.pk import (
    OdeModel,
    PkModel,
    Schedule,
    michaelis_menten_rate,
    sensitivities,
    solve,
    two_compartment,
    two_compartment_rate,
)
from medcm_cli.pk.schedule import Features
from medcm_cli.report.section import Section
from medcm_cli.study.workers import prepare

FITS, SUBJECTS, SAMPLES = (100, 10), 60, 3
DOSES, INTERVAL = 50, 12.0  # a steady state, written out

Task = Callable[[], object]

_TWO = {"CL": 0.1, "V1": 2.0, "Q": 0.15, "V2": 0.75}
_SATURABLE = {"VM": 60.0, "KM": 300.0, "V1": 2.0}
_BINDING = {"KEL": 0.05, "KON": 10.0, "KOFF": 1.0, "KINT": 0.05, "KDEG": 0.1, "R0": 10.0, "V1": 1.0}

MODELS: Mapping[str, PkModel] = {
    "closed form": two_compartment(),
    "two compartments": OdeModel(two_compartment_rate, tuple(_TWO), method="tsit5"),
    "Michaelis-Menten": OdeModel(michaelis_menten_rate, tuple(_SATURABLE)),
}


def binding_rate(t: Tensor, a: Any, p: Any) -> dict[str, Tensor]:
    """A drug that binds to its target: drug, free target less what there is at rest, and complex."""
    del t
    bound = p.KON * a.drug * (p.R0 + a.free) - p.KOFF * a.complex
    return {
        "drug": -p.KEL * a.drug - bound,
        "free": -p.KDEG * a.free - bound,
        "complex": bound - p.KINT * a.complex,
    }


def measure(repeats: int, report: Callable[[str], None]) -> Section:
    """CPU time of predictions and their derivatives in one thread, the least of ``repeats`` in turn."""
    prepare(threads=1)
    tasks, rows = dict[str, Task](), list[tuple[str, str, str]]()
    for fits in FITS:
        more, ratios = _models(fits)
        tasks |= more
        rows += ratios
    for more, ratios in (_steady(), _stiff()):
        tasks |= more
        rows += ratios
    for name, task in tasks.items():  # warm up
        if "torchdiffeq" not in name:
            task()
    seconds = dict.fromkeys(tasks, float("inf"))
    for repeat in range(1, repeats + 1):
        report(f"measurement {repeat} of {repeats}")
        for name, task in tasks.items():
            started = time.process_time()
            task()
            seconds[name] = min(seconds[name], time.process_time() - started)
    cells = [
        [what, f"{seconds[what] * 1e3:.1f} ms", f"{seconds[what] / seconds[base]:.2f} x {base}", aim]
        for what, base, aim in rows
    ]
    cells += [
        [name, f"{seconds[name] * 1e3:.1f} ms", "", ""] for name in sorted({base for _, base, _ in rows})
    ]
    title = f"CPU time of one thread, least of {repeats}; {SUBJECTS} subjects"
    return Section(title, ["prediction and gradient", "time", "ratio", "aim"], cells)


def _models(fits: int) -> tuple[dict[str, Task], list[tuple[str, str, str]]]:
    """Predictions of ``SAMPLES`` samples, and linearisations at one."""
    schedule, of = _once(fits), f", {fits} fits"
    closed = f"closed form{of}"
    values = {"closed form": _TWO, "two compartments": _TWO, "Michaelis-Menten": _SATURABLE}
    tasks: dict[str, Task] = {
        f"{name}{of}": _gradient(pk, schedule, values[name], SAMPLES, fits) for name, pk in MODELS.items()
    }
    most = 45 if fits > 10 else 40
    rows = [
        (f"two compartments{of}", closed, f"at most {most}"),
        (f"Michaelis-Menten{of}", closed, "at most 20"),
    ]
    for name in ("two compartments", "Michaelis-Menten"):
        pk, single = MODELS[name], f"{name}, one sample{of}"
        assert isinstance(pk, OdeModel)
        tasks[single] = _gradient(pk, schedule, values[name], 1, fits)
        tasks[f"{name}, fo{of}"] = _linearised(pk, schedule, values[name], fits)
        old = replace(pk, method="dopri5")
        tasks[f"{name}, fo by torchdiffeq{of}"] = _linearised(old, schedule, values[name], fits)
        rows += [
            (f"{name}, fo{of}", single, "at most 4"),
            (f"{name}, fo by torchdiffeq{of}", f"{name}, fo{of}", "at least 5"),
        ]
    return tasks, rows


def _steady() -> tuple[dict[str, Task], list[tuple[str, str, str]]]:
    """A steady state that is solved for, and as many doses."""
    hours = torch.tensor([1.0, 6.0, 11.0]).double().view(3, 1, 1, 1).repeat(1, 1, SUBJECTS, 10)
    zero = torch.zeros(1, 1, SUBJECTS, 10).double()
    known = Features(interval=zero + INTERVAL)
    before = -INTERVAL * torch.arange(DOSES).double().view(-1, 1, 1, 1) + zero
    once = Schedule.build(hours, zero, zero, zero + 150, features=known)
    written = Schedule.build(hours, before, 0 * before, 0 * before + 150)
    pk = MODELS["Michaelis-Menten"]
    assert isinstance(pk, OdeModel)
    old, doses = replace(pk, method="dopri5"), f"{DOSES} doses"
    tasks: dict[str, Task] = {
        "steady state": _gradient(pk, once, _SATURABLE, 1, 10),
        doses: _gradient(pk, written, _SATURABLE, 1, 10),
        f"{doses}, torchdiffeq": _gradient(old, written, _SATURABLE, 1, 10),
    }
    return tasks, [(f"{doses}, torchdiffeq", "steady state", "at least 10"), (doses, "steady state", "")]


def _stiff() -> tuple[dict[str, Task], list[tuple[str, str, str]]]:
    """Fast binding to a target: 100 per hour."""
    pk = OdeModel(binding_rate, tuple(_BINDING), method="kvaerno5", amount_per_level=1.0)
    schedule = _once(10, 8.0).to(torch.float64)
    tasks: dict[str, Task] = {
        "binding, kvaerno5": _gradient(pk, schedule, _BINDING, 1, 10),
        "binding, torchdiffeq": _gradient(replace(pk, method="dopri5"), schedule, _BINDING, 1, 10),
    }
    return tasks, [("binding, torchdiffeq", "binding, kvaerno5", "at least 5")]


def _once(fits: int, sooner: float = 1.0) -> Schedule:
    """One infusion of a minute, seen near 4, 24 and 48 h, or so many times ``sooner``."""
    g = torch.Generator().manual_seed(0)
    at = torch.rand(3, 1, SUBJECTS, fits, generator=g).double() - 0.5
    start = torch.zeros(1, 1, SUBJECTS, fits).double()
    amount = 1500 + 1000 * torch.rand(start.shape, generator=g).double()
    hours = torch.tensor([4.0, 24.0, 48.0]).double().view(3, 1, 1, 1) + at
    return Schedule.build(hours / sooner, start, start + 1 / 60, amount).to(torch.float32)


def _leaf(values: Mapping[str, float], samples: int, fits: int, dtype: torch.dtype) -> Tensor:
    """Logarithms of parameters, of which the first two differ: (P, S, N, B)."""
    g = torch.Generator().manual_seed(1)
    typical = torch.tensor(list(values.values())).log().view(-1, 1, 1, 1)
    logs = typical.repeat(1, samples, SUBJECTS, fits)
    logs[:2] += 0.15 * torch.randn(logs[:2].shape, generator=g)
    return logs.to(dtype).requires_grad_()


def _gradient(pk: PkModel, schedule: Schedule, values: Mapping[str, float], samples: int, fits: int) -> Task:
    logs = _leaf(values, samples, fits, schedule.amount.dtype)

    def task() -> object:
        z = dict(zip(values, logs.exp().unbind(0), strict=True))
        return torch.autograd.grad(solve(pk, schedule, z).sum(), logs)

    return task


def _linearised(pk: PkModel, schedule: Schedule, values: Mapping[str, float], fits: int) -> Task:
    """f and the columns of G for two etas, and the gradient of a function of both."""
    logs, wrt = _leaf(values, 1, fits, schedule.amount.dtype), list(values)[:2]

    def task() -> object:
        z = dict(zip(values, logs.exp().unbind(0), strict=True))
        prediction, columns = sensitivities(pk, schedule, z, wrt)
        value = prediction.square().sum() + torch.stack(columns).square().sum()
        return torch.autograd.grad(value, logs)

    return task
