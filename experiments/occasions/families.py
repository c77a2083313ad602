"""What families of q cost vi where kappas vary: -2 ELBO at the true population beside -2 log L by importance
sampling, per subject, and the CPU time of a step.

Run as ``python experiments/occasions/families.py outputs/data/visits.csv``; prints a Markdown table.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from simulate import OMEGA, PI, RHO, SIGMA, TYPICAL
from tabulate import tabulate
from torch import Tensor

from medcm_cli.data import Format, Population, read_events
from medcm_cli.model import CovariateNetwork, Model, RandomEffects, ResidualError
from medcm_cli.model.random_effects import PI as BETWEEN
from medcm_cli.numerics.normal import normal_points
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import State, Vi
from medcm_cli.pk import one_compartment
from medcm_cli.posteriors.individual import posterior

FAMILIES = ("full_rank", "by_occasion", "mean_field")
SUBJECTS, STEPS, RATE, POINTS = 40, 2000, 0.05, 256


def known() -> Model:
    """The model that the sets were drawn from, all of it known."""
    sd = np.array(list(OMEGA.values()))
    omega = np.outer(sd, sd) * np.array([[1, RHO], [RHO, 1]])
    pi = np.diag(np.square(list(PI.values())))
    return Model(
        CovariateNetwork.build([], list(TYPICAL), {}, TYPICAL),
        one_compartment(amount_per_level=1.0),
        RandomEffects(tuple(OMEGA), fixed=omega.tolist()),
        ResidualError(("additive",), {"additive": SIGMA}),
        occasions=RandomEffects(tuple(PI), fixed=pi.tolist(), of=BETWEEN),
    )


def of_subjects(path: Path) -> Population:
    """The first subjects."""
    events = read_events(path, {}, Format(by_occasion=True))
    return Population.from_events(events, torch.float64).select([np.arange(SUBJECTS)])


def trained(model: Model, population: Population, family: str) -> tuple[int, float, float]:
    """How many values q has of a subject; -2 ELBO less n log(2 pi) where it is trained; and the CPU time of a
    step, s."""
    objective = Vi(samples=16, family=family, estimator="path_derivative")
    state = objective.init(model, population, [Stream(0, 1, 1)], torch.float64)
    q = {name: value.clone().requires_grad_() for name, value in state.trained.items() if name[:2] == "q."}
    rest = {name: value for name, value in state.trained.items() if name not in q}
    optimizer = torch.optim.Adam(list(q.values()), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(1)
    shape = objective.noise_shape(model, population)
    began = time.process_time()
    for _ in range(STEPS):
        noise = torch.randn(*shape, 1, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        loss: Tensor = objective.loss(model, population, State({**rest, **q}), noise).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    step = (time.process_time() - began) / STEPS
    quiet = Vi(samples=POINTS, family=family, estimator="standard")
    points = normal_points(shape[0], POINTS)[..., None, None].expand(-1, -1, SUBJECTS, 1)
    with torch.no_grad():
        value = 2 * float(quiet.loss(model, population, State({**rest, **q}), points))
    own = sum(v.numel() for v in q.values()) // SUBJECTS
    return own, value - float(population.observation_count) * np.log(2 * np.pi), step


def exact(model: Model, population: Population) -> float:
    """-2 log L less n log(2 pi), by importance sampling around the modes."""
    values = {"like": torch.zeros(1, dtype=torch.float64)} | model.network.init(
        [Stream(0, 1, 1)], torch.float64
    )
    found = posterior(model, values, population, [Stream(0, 1, 1)], "laplace", 4000)
    mean = torch.stack([m[0, :, 0] for m in found.mode], -1)
    spread = torch.distributions.MultivariateNormal(mean, found.covariance[..., 0].permute(2, 0, 1))
    draws = torch.stack([d[..., 0] for d in found.draws], -1)
    zeta = model.typical(values, population)
    joint = model.log_joint(values, zeta, population, [d[..., None] for d in draws.unbind(-1)])[..., 0]
    log_l = torch.logsumexp(joint - spread.log_prob(draws), 0) - np.log(len(draws))
    return float(-2 * log_l.sum()) - float(population.observation_count) * np.log(2 * np.pi)


def main(path: Path) -> None:
    """The table."""
    torch.set_num_threads(1)
    model, population = known(), of_subjects(path)
    value, rows = exact(model, population), []
    for family in FAMILIES:
        own, bound, step = trained(model, population, family)
        rows.append([family, own, (bound - value) / SUBJECTS, 1000 * step])
    headers = ["family", "values of a subject", "-2 ELBO above -2 log L, per subject", "CPU, ms a step"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=".3g"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
