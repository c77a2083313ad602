"""What ``medcm posterior`` does: the posterior sampled, and the folder that keeps it."""

import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from medcm_cli import runs
from medcm_cli.commands.posterior_source import IDENTITY, Source, of_configuration, of_run, target_of
from medcm_cli.commands.terminal import ERR, OUT, job_bar, said
from medcm_cli.posteriors.sampling import complaints, sample, tables
from medcm_cli.report.section import Section
from medcm_cli.runs import draws
from medcm_cli.runs.summary import label_of
from medcm_cli.runs.units import LOG, NONE, effect_scales, occasion_scales
from medcm_cli.study.identity import versions


def run(
    composed: DictConfig, own: Mapping[str, Any], given: Set[str], show: Callable[[Section], None]
) -> None:
    """Sample the posterior that the configuration describes, unless it is there already.

    :param own: the configuration with references resolved. :param given: options of the command line. :param
        show: prints a table.
    :raises InputError: options, a run or data that do not fit, or another posterior in its place.
    """
    torch.set_num_threads(1)  # more lose time on tensors of this size
    source = of_run(own, given) if own["run"] is not None else of_configuration(composed)
    for line in source.problem.events.notes:
        said(line)
    fold = source.problem.folds[source.fold]
    rows = {"train": fold.train, "test": fold.test, "all": np.arange(len(source.problem.events.ids))}
    chosen = rows[own["subjects"]]
    target = target_of(source, own, chosen)
    folder = _folder(source, own)
    described = {"model": source.identity} | {key: own[key] for key in IDENTITY}
    data = {key: source.problem.data[key] for key in ("fingerprint", "subjects")} | {"rows": chosen.tolist()}
    digest = runs.config_hash(described, data)
    if not own["overwrite"] and draws.is_done(folder, digest, described):
        OUT.print(f"posterior: done already, in {folder}; overwrite=true repeats it")
        return
    begun, seeds = time.perf_counter(), (own["seed"], source.fold, source.replicate)
    with _bar(own) as progress:
        sampled = sample(target, seeds, own["warmup"], own["draws"], own["target_accept"], progress)
    there = source.model.there(target.population)
    sampled = replace(
        sampled,
        names=source.model.effects(target.population),
        there=None if there is None else (there[:, 0, :, 0].T > 0).numpy(),
    )
    seconds = time.perf_counter() - begun
    made = tables(sampled, chosen, [source.problem.events.ids[row] for row in chosen])
    found = made["diagnostics"].to_pandas()
    poor = complaints(found)
    record = {
        "status": "complete",
        "config": described,
        "config_hash": digest,
        "run": None if own["run"] is None else str(own["run"]),
        "data": {**data, "source": source.problem.data["source"]},
        "seed": own["seed"],
        "seconds": seconds,
        "gradient_calls": sampled.calls,
        "warnings": poor,
        "versions": {**versions(), **{name: version(name) for name in ("numpyro", "jax", "arviz-stats")}},
    }
    units = runs.Units.of_config(source.problem.config)
    draws.write(folder, made, record, units)
    title = f"{folder.name}: {own['chains']} chains of {own['draws']} draws"
    scales = effect_scales(source.problem.config, units.of_parameters(source.model.pk.units))
    between = occasion_scales(source.problem.config, units.of_parameters(source.model.pk.units))
    show(_summary(found, title, scales, units, between))
    OUT.print(f"posterior: {len(chosen)} subjects in {seconds:.1f} s -> {folder}")
    _warn(poor)


def _folder(source: Source, own: Mapping[str, Any]) -> Path:
    """Where the posterior goes."""
    name = own["name"] if own["name"] is not None else own["population"] + source.label
    return source.outputs / source.study / "posterior" / runs.check_name("name", str(name))


def _warn(poor: list[str]) -> None:
    for complaint in poor:
        ERR.print(f"warning: {complaint}")
    if poor:
        ERR.print("do not rely on these draws: take more warmup, more draws or a higher target_accept")


def _summary(
    found: pd.DataFrame,
    title: str,
    effects: Mapping[str, str],
    units: runs.Units,
    between: Mapping[str, str] | None = None,
) -> Section:
    """A row per parameter, of eta the worst subject's. Levels are in the unit of the data.

    :param effects: parameter that varies -> what its random effect is on. :param between: the same between
        occasions.
    """
    names = list(effects)
    unit_of = units._replace(reported=units.level).of_sigmas
    separate = found["position"].notna().all()  # with sigma and Omega, a transition is that of all subjects
    headers = [
        "quantity",
        "mean",
        "sd",
        "R-hat, largest",
        "bulk ESS, least",
        "tail ESS, least",
        "divergences",
    ]
    cells = []
    for name, rows in found.groupby("quantity", sort=False):
        one = rows.iloc[0] if rows["position"].isna().all() else None
        what, _, place = str(name).partition("_")
        kind = unit_of.get(str(name), NONE)
        if what in ("eta", "omega"):
            kind = effects[names[int(place) - 1]] if place.isdigit() else LOG
        elif what in ("kappa", "pi"):
            kind = (between or {}).get(place if what == "pi" else place.rpartition("_")[0], NONE)
        label = ", ".join([label_of(str(name), names), *([kind] if kind != NONE else [])])
        cells.append(
            [
                label if one is not None else f"{label}, {len(rows)} subjects",
                "" if one is None else f"{one['mean']:.4g}",
                "" if one is None else f"{one['sd']:.3g}",
                f"{rows['r_hat'].max():.3f}",
                f"{rows['ess_bulk'].min():.0f}",
                f"{rows['ess_tail'].min():.0f}",
                f"{rows['divergences'].sum()}" if separate else f"{rows['divergences'].iloc[0]}",
            ]
        )
    return Section(title, headers, cells)


@contextmanager
def _bar(own: Mapping[str, Any]) -> Iterator[Callable[[int, int], None]]:
    """Progress on a terminal: transitions, divergences, time left. Silent where stderr is not a terminal."""
    warmup = own["warmup"]
    with job_bar() as bar:
        task = bar.add_task("posterior", total=warmup + own["draws"], state="starting")

        def update(done: int, divergences: int) -> None:
            state = "warm-up" if done <= warmup else f"draws, {divergences} divergences"
            bar.update(task, completed=done, state=state)

        yield update
