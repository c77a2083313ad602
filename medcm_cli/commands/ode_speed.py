"""Speed of models given as dA/dt, as ratios within one run (``medcm benchmark --ode``)."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medcm_cli.data import Population
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Foce
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
from medcm_cli.training.loss import Evaluation

FITS, SUBJECTS, SAMPLES = (100, 10), 60, 3
DOSES, INTERVAL = 50, 12.0  # a steady state, written out
SLOW = "binding by torchdiffeq"
MIXED = "Michaelis-Menten from a depot"
SEEN = (4.0, 24.0, 48.0)  # hours of observations, about
OFTEN = (0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 36.0, 48.0)
BEFORE = 3  # epochs of foce, from whose modes the next are found

Task = Callable[[], object]


class Ratio(NamedTuple):
    """Of two tasks, ``what`` to ``base``, and what is asked of it."""

    what: str
    base: str
    asked: str


_TWO = {"CL": 0.1, "V1": 2.0, "Q": 0.15, "V2": 0.75}
_SATURABLE = {"VM": 60.0, "KM": 300.0, "V1": 2.0}
_ABSORBED = {**_SATURABLE, "KA": 1.0}
_BINDING = {"KEL": 0.05, "KON": 10.0, "KOFF": 1.0, "KINT": 0.05, "KDEG": 0.1, "R0": 10.0, "V1": 1.0}

MODELS: Mapping[str, PkModel] = {
    "closed form": two_compartment(),
    "two compartments": OdeModel(two_compartment_rate, tuple(_TWO), method="tsit5"),
    "Michaelis-Menten": OdeModel(michaelis_menten_rate, tuple(_SATURABLE)),
    MIXED: OdeModel(michaelis_menten_rate, tuple(_ABSORBED), observed=2),
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


def measure(repeats: int, report: Callable[[str], None], compiled: bool = False) -> Section:
    """CPU time of predictions and their derivatives in one thread, the least of ``repeats`` in turn; of
    stiff equations by torchdiffeq, which is slow, one measurement. With ``compiled`` steps, too, where there
    is a C++ compiler.

    :raises InputError: there is none.
    """
    prepare(threads=1)
    tasks, ratios = dict[str, Task](), list[Ratio]()
    groups = [*(_models(fits) for fits in FITS), *(_foce(fits) for fits in FITS), _steady(), _stiff()]
    for of in (*groups, *(_compiled(fits) for fits in FITS if compiled)):
        tasks |= of[0]
        ratios += of[1]
    quick = {name: task for name, task in tasks.items() if name != SLOW}
    for name, task in quick.items():  # warm up
        if "torchdiffeq" in name:
            continue
        started = time.process_time()
        task()
        if "compiled" in name:
            report(f"{name}: compiled in {time.process_time() - started:.0f} s")
    seconds = dict.fromkeys(tasks, float("inf"))
    for repeat in range(1, repeats + 1):
        report(f"measurement {repeat} of {repeats}")
        for name, task in (quick if repeat > 1 else tasks).items():
            started = time.process_time()
            task()
            seconds[name] = min(seconds[name], time.process_time() - started)
    cells = [
        [what, f"{seconds[what] * 1e3:.1f} ms", f"{seconds[what] / seconds[base]:.2f} x {base}", asked]
        for what, base, asked in ratios
    ]
    shown = {what for what, *_ in ratios}
    bases = dict.fromkeys(base for _, base, _ in ratios if base not in shown)
    cells += [[name, f"{seconds[name] * 1e3:.1f} ms", "", ""] for name in bases]
    title = f"CPU time of one thread, least of {repeats}; {SUBJECTS} subjects"
    return Section(title, ["prediction and gradient", "time", "ratio", "asked"], cells)


def _models(fits: int) -> tuple[dict[str, Task], list[Ratio]]:
    """Predictions of ``SAMPLES`` samples, and linearisations at one."""
    schedule, of = _once(fits), f", {fits} fits"
    closed = f"closed form{of}"
    values = {"closed form": _TWO, "two compartments": _TWO, "Michaelis-Menten": _SATURABLE}
    values[MIXED] = _ABSORBED
    tasks: dict[str, Task] = {
        f"{name}{of}": _gradient(pk, schedule, values[name], SAMPLES, fits) for name, pk in MODELS.items()
    }
    most = 45 if fits > 10 else 40
    ratios = [
        Ratio(f"two compartments{of}", closed, f"at most {most}"),
        Ratio(f"Michaelis-Menten{of}", closed, "at most 20"),
        Ratio(f"{MIXED}{of}", closed, ""),
    ]
    for name in ("Michaelis-Menten", MIXED):
        often = f"{name}, {len(OFTEN)} observations{of}"
        tasks[often] = _gradient(MODELS[name], _once(fits, hours=OFTEN), values[name], 1, fits)
        ratios.append(Ratio(often, f"{name}, one sample{of}", ""))
    for name in ("two compartments", "Michaelis-Menten", MIXED):
        pk, single = MODELS[name], f"{name}, one sample{of}"
        assert isinstance(pk, OdeModel)
        tasks[single] = _gradient(pk, schedule, values[name], 1, fits)
        tasks[f"{name}, fo{of}"] = _linearised(pk, schedule, values[name], fits)
        if name == MIXED:
            ratios.append(Ratio(f"{name}, fo{of}", single, ""))
            continue
        old = replace(pk, method="dopri5")
        tasks[f"{name}, fo by torchdiffeq{of}"] = _linearised(old, schedule, values[name], fits)
        ratios += [
            Ratio(f"{name}, fo{of}", single, "at most 4"),
            Ratio(f"{name}, fo by torchdiffeq{of}", f"{name}, fo{of}", "at least 5"),
        ]
    return tasks, ratios


def _compiled(fits: int) -> tuple[dict[str, Task], list[Ratio]]:
    """Predictions by steps in machine code."""
    schedule, tasks, ratios = _once(fits), dict[str, Task](), list[Ratio]()
    for name, values in (("two compartments", _TWO), ("Michaelis-Menten", _SATURABLE)):
        what = f"{name}, compiled, {fits} fits"
        tasks[what] = _gradient(MODELS[name].with_compiled_steps(), schedule, values, SAMPLES, fits)
        ratios.append(Ratio(what, f"closed form, {fits} fits", "at most 15"))
    return tasks, ratios


def _foce(fits: int) -> tuple[dict[str, Task], list[Ratio]]:
    """Epochs of foce, each with its search for modes from those of the last."""
    tasks, ratios = dict[str, Task](), list[Ratio]()
    for name, values in (("two compartments", _TWO), ("Michaelis-Menten", _SATURABLE)):
        what, single = f"{name}, foce, {fits} fits", f"{name}, one sample, {fits} fits"
        tasks[what] = _epoch(MODELS[name], values, fits)
        ratios.append(Ratio(what, single, "at most 6"))
    return tasks, ratios


def _steady() -> tuple[dict[str, Task], list[Ratio]]:
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
        f"{doses} by torchdiffeq": _gradient(old, written, _SATURABLE, 1, 10),
    }
    each = (doses, f"{doses} by torchdiffeq")
    return tasks, [Ratio(what, "steady state", "at least 10") for what in each]


def _stiff() -> tuple[dict[str, Task], list[Ratio]]:
    """Fast binding to a target: 100 per hour, from doses about as large as the target, in float64."""
    pk = OdeModel(binding_rate, tuple(_BINDING), method="kvaerno5", amount_per_level=1.0)
    schedule = _once(10, _BINDING["R0"], torch.float64)
    tasks: dict[str, Task] = {
        f"binding by {method}": _gradient(replace(pk, method=of), schedule, _BINDING, 1, 10)
        for method, of in (("kvaerno5", "kvaerno5"), ("torchdiffeq", "dopri5"))
    }
    return tasks, [Ratio(SLOW, "binding by kvaerno5", "at least 5")]


def _once(
    fits: int, dose: float = 2000.0, dtype: torch.dtype = torch.float32, hours: Sequence[float] = SEEN
) -> Schedule:
    """One infusion of a minute, seen near these hours."""
    g = torch.Generator().manual_seed(0)
    at = torch.rand(len(hours), 1, SUBJECTS, fits, generator=g).double() - 0.5
    start = torch.zeros(1, 1, SUBJECTS, fits).double()
    amount = (0.75 + 0.5 * torch.rand(start.shape, generator=g).double()) * dose
    middle = torch.tensor(hours).double().view(-1, 1, 1, 1)
    # Within an eighth of each, and not before the infusion is over
    seen = middle + at.clamp(min=-middle / 8, max=middle / 8)
    return Schedule.build(seen, start, start + 1 / 60, amount).to(dtype)


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


def _epoch(pk: PkModel, values: Mapping[str, float], fits: int) -> Task:
    """One epoch of foce of a model without covariates, two random effects, after ``BEFORE`` others."""
    begin = {name: 1.1 * value for name, value in values.items()}
    network = CovariateNetwork.build([], list(values), {}, begin)
    model = Model(network, pk, RandomEffects(tuple(values)[:2]), ResidualError(("additive",)))
    streams = [Stream(0, 1, fit + 1) for fit in range(fits)]
    population, objective = _population(pk, values, fits), Foce()
    state = objective.init(model, population, streams, torch.float32)
    evaluation = Evaluation(model, objective, population, state, streams, torch.float32, None)
    flat = evaluation.layout.pack(state.trained).requires_grad_()
    optimizer, carried = torch.optim.Adam([flat], lr=0.01), dict(state.carried)

    def task() -> None:
        part = evaluation.total(flat, carried, differentiate=True)
        carried.update(part.carried)
        flat.grad = part.gradient
        optimizer.step()

    for _ in range(BEFORE):
        task()
    return task


def _population(pk: PkModel, values: Mapping[str, float], fits: int) -> Population:
    """Concentrations of subjects whose first two parameters differ, with an error of sd 0.05."""
    schedule = _once(fits)
    z = dict(zip(values, _leaf(values, 1, fits, torch.float32).detach().exp().unbind(0), strict=True))
    with torch.no_grad():
        levels = solve(pk, schedule, z)[:, 0]
    noise = torch.randn(levels.shape, generator=torch.Generator().manual_seed(2))
    return Population(
        subject=torch.arange(SUBJECTS)[:, None].expand(-1, fits),
        present=torch.ones(SUBJECTS, fits),
        time=schedule.time.float(),
        dv=(levels + 0.05 * noise)[:, None],
        observed=torch.ones_like(noise)[:, None],
        schedule=schedule,
        covariates={},
        ragged=False,
    )
