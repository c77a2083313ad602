"""``medcm fit``: Hydra composes each job's configuration, the job trains what remains, a bar shows how far
it is."""

import glob
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from medcm_cli.commands.compose import Steps, check_arguments, run
from medcm_cli.commands.launchers import cores_of, launched, without_hydra
from medcm_cli.commands.terminal import OUT, by_cause, complain, job_bar, said, shortened
from medcm_cli.errors import InputError
from medcm_cli.files import folder_name
from medcm_cli.study.axes import axis
from medcm_cli.study.identity import AXES, difference
from medcm_cli.study.options import as_config, complete, names_a_fit
from medcm_cli.study.processes import foresee_training

if TYPE_CHECKING:
    import torch
    from rich.progress import TaskID

    from medcm_cli.runs import Record
    from medcm_cli.study.queue import Batch, Work
    from medcm_cli.study.workers import Workers

_LONGEST_VARIANT = 100  # characters, in earlier versions


def command(arguments: list[str]) -> None:
    """Hydra composes the configuration and runs one job per combination of swept options.

    :raises InputError: a flag, override, group or choice that does not exist.
    """
    _places.clear()
    try:
        run("fit", "config", coalesce(arguments), Steps(_check, _job, _plan, _train))
    finally:
        if _workers.cache_info().currsize:
            _workers().end()
        _say_how_far()


@cache
def _workers() -> "Workers":
    """This process's, which may be a launcher's: with the first job that has something to train."""
    from medcm_cli.study.workers import Workers

    return Workers()


def coalesce(arguments: Sequence[str]) -> list[str]:
    """Turn sweeps over the batched axes (fold, outer, inner and replicate) into lists, so that Hydra runs one
    job for all of them.

    With ``batch.fits=N`` in a multirun they become a sweep over lists of at most N fits, for launchers that
    spread jobs.
    """
    check_arguments(arguments)
    rest: list[str] = []
    axes: dict[str, list[int]] = {}
    most: int | None = None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "batch.fits" and value.isdigit() and int(value) > 0:
            most = int(value)
        if equals and name in AXES and value not in ("", "null"):
            try:
                swept = OverridesParser.create().parse_override(argument).is_sweep_override()
            except HydraException as error:
                raise InputError(f"{argument}: {' '.join(str(error).split())}") from error
            # Lists of lists are a sweep that somebody has already split.
            if not (swept and "[" in value):
                axes[name] = axis(name, value)
                continue
        rest.append(argument)
    multirun = any(argument in ("-m", "--multirun") for argument in rest)
    if multirun and most is not None and axes:
        return [*rest, *_split(axes, most)]
    return [*rest, *(f"{name}={_list(values)}" for name, values in axes.items())]


def _split(axes: dict[str, list[int]], most: int) -> list[str]:
    """Sweeps over lists whose product has at most ``most`` fits: replicates are split where they alone are
    too many, then the next axis inwards."""
    parts, room = [], most
    for name in reversed(AXES):
        if name in axes:
            size = min(len(axes[name]), room)
            room //= size
            parts.append(f"{name}={','.join(map(_list, _chunks(axes[name], size)))}")
    return parts


def _chunks(values: Sequence[int], size: int) -> list[tuple[int, ...]]:
    iterator = iter(values)
    return list(iter(lambda: tuple(itertools.islice(iterator, size)), ()))


def _list(values: Sequence[int]) -> str:
    return f"[{','.join(map(str, values))}]"


def _check(composed: DictConfig) -> None:
    """What can be said of a job before torch takes seconds."""
    complete(as_config(composed))


_places: dict[Path, Mapping[str, Any]] = {}
"""Folders of fits that the jobs of this command have, with the options of the first job there."""
_handed_on: set[Path] = set()
"""Studies whose jobs this process has handed to a launcher."""


def _plan(composed: DictConfig) -> Path | None:
    """Write down which fits a job has; gives the file, where it is new."""
    from medcm_cli.study.plan import place_of, write_plan

    config = complete(_named(without_hydra(composed), composed.hydra))
    folder = place_of(config)
    other = _places.setdefault(folder, config)
    paths = [of["dataset"]["path"] for of in (other, config)]
    if differs := difference(other, config) or ("dataset.path" if paths[0] != paths[1] else ""):
        raise InputError(
            f"{folder}: two jobs of this command would write there ({differs}); give each a name of its own "
            "with variant=... or study=..."
        )
    if launched(composed.hydra):
        _handed_on.add(Path(config["outputs"], str(config["study"])))
    else:
        foresee_training(config)
    return write_plan(config)


def _say_how_far() -> None:
    """Of studies whose jobs say so elsewhere."""
    for study in sorted(path for path in _handed_on if path.is_dir()):
        from medcm_cli.commands.status import headline
        from medcm_cli.runs.progress import Watch

        OUT.print(f"{study}, {headline(Watch([study]).look())}")


def _named(composed: DictConfig, hydra: Any) -> dict[str, Any]:
    """A job's options, and what its objective, error and variant are called."""
    config, choices = as_config(composed), hydra.runtime.choices
    variant = _variant(config, choices, hydra.job.override_dirname)
    if names_a_fit(config["fixed"]):
        from medcm_cli.study.known import with_known

        config = with_known(config)
    return config | {
        "labels": {"objective": choices["objective"], "error": choices["error"], "variant": variant}
    }


class _Left(NamedTuple):
    """What is left of a job, ``label``: its options and the ``records`` of the fits that remain, beside those
    that are ``done``; the ``effort`` of one of them; the ``device`` it is for and the ``cores`` that the job
    has; whether its progress is ``shown``; and the study's ``folder``."""

    label: str
    config: Mapping[str, Any]
    records: list["Record"]
    done: list["Record"]
    effort: float
    device: "torch.device"
    cores: int | None
    shown: bool
    folder: Path


def _job(composed: DictConfig) -> _Left | None:
    """One combination of options: what remains of its folds and replicates."""
    hydra_config = HydraConfig.get()
    config = _named(composed, hydra_config)
    foresee_training(complete(config))

    from medcm_cli.study.job import Job
    from medcm_cli.study.plan import write_plan

    job = Job.build(config)
    for line in job.problem.events.notes:
        said(line)
    plan = job.plan()
    write_plan(job.config)
    label = str(config["labels"]["objective"])
    study = Path(config["outputs"]) / next(iter(plan.records.values())).address.study
    if not plan.todo:
        failures = f", {plan.previously_failed} failed" if plan.previously_failed else ""
        OUT.print(
            f"{label}: {len(plan.done)} of {len(plan.done)} fits done already{failures}, in {study}; "
            "overwrite=true repeats them"
        )
        return None
    complain("damaged, and done again:", plan.damaged)
    records, done = ([plan.records[fit] for fit in fits] for fits in (plan.todo, plan.done))
    effort = job.objective.effort * config["epochs"]
    shown = not launched(hydra_config)  # else several would draw on one terminal
    cores = cores_of(hydra_config)
    return _Left(label, job.config, records, done, effort, job.device, cores, shown, study)


def _train(jobs: Sequence[_Left]) -> Iterator[tuple[int, Exception]]:
    """Train what remains of some jobs, on processes that they share; the error of each that fails."""
    if not jobs:
        return
    works, processes = _divided(jobs)
    jobs = _told_apart(jobs)
    shown = all(job.shown for job in jobs)
    try:
        with _training_bar(jobs, works, shown) as (update, ended):
            for end in _workers().run(works, processes, update):
                say = ended(end.number)
                if end.error is None:
                    for line in _words(jobs[end.number], end.finished, end.seconds):
                        say(line)
                else:
                    yield end.number, end.error
    finally:
        if not shown:
            _workers().end()  # nobody else does, in a process of a launcher


def _told_apart(jobs: Sequence[_Left]) -> list[_Left]:
    """Jobs whose labels say in what else those with the same label differ."""
    addresses = [job.records[0].address for job in jobs]
    labels = [job.label for job in jobs]
    for name in ("error", "learning_rate", "dataset", "variant", "study"):
        values = [str(getattr(address, name)) for address in addresses]
        shared = {
            label
            for label in labels
            if len({v for other, v in zip(labels, values, strict=True) if other == label}) > 1
        }
        labels = [
            f"{label}, {value}" if label in shared else label
            for label, value in zip(labels, values, strict=True)
        ]
    return [job._replace(label=label) for job, label in zip(jobs, labels, strict=True)]


def _divided(jobs: Sequence[_Left]) -> tuple[list["Work"], int]:
    """The batches of each job, and how many processes train them."""
    from medcm_cli.study.interrupted import interrupted
    from medcm_cli.study.queue import Work
    from medcm_cli.study.workers import batches, process_count, shares

    def count(job: _Left, fits: int) -> int:
        return process_count(job.config["batch"]["processes"], fits, job.device, job.cores)

    fits = sum(len(job.records) for job in jobs)
    processes = min(count(job, fits) for job in jobs)
    works = []
    for job, share in zip(
        jobs, shares([job.effort * len(job.records) for job in jobs], processes), strict=True
    ):
        most, wanted = job.config["batch"]["fits"], min(share, count(job, len(job.records)))
        parts, rest = interrupted(Path(job.config["outputs"]), job.records, job.done, most)
        parts += batches(rest, most, max(1, wanted - len(parts))) if rest else []
        works.append(Work(job.config, parts, job.effort))
    return works, min(processes, sum(len(work.batches) for work in works))


def _words(job: _Left, finished: Sequence["Record"], seconds: float) -> list[str]:
    """What became of a job's fits, in lines."""
    failed = [record for record in finished if record.status == "failed"]
    elsewhere = len(job.records) - len(finished)
    line = (
        f"{job.label}: {len(finished)} {'fit' if len(finished) == 1 else 'fits'} in {seconds:.1f} s"
        + (f", {len(job.done)} done before" if job.done else "")
        + (f", {elsewhere} done by others" if elsewhere else "")
        + f", {len(failed)} failed -> {job.folder}"
    )
    causes = shortened(by_cause(list(map(_failure, failed)), "fits"), 5)
    return [line, *_converged(finished), *(f"  failed: {cause}" for cause in causes)]


def _converged(finished: Sequence["Record"]) -> list[str]:
    """How many fits have converged, and by which rule; nothing where none was asked."""
    from medcm_cli.runs.description import converged

    asked = [record for record in finished if converged(record) is not None]
    if not asked:
        return []
    done = sum(converged(record) is True for record in asked)
    rules = dict.fromkeys(str((record.convergence or {})["rule"]) for record in asked)
    still = [record for record in asked if converged(record) is False]
    lines = [f"  converged: {done} of {len(asked)}; rule: {' or '.join(rules)}"]
    if still:
        places = [(record.address.place, "ended after all epochs, at no optimum") for record in still]
        lines += [f"  not converged: {words}" for words in shortened(by_cause(places, "fits"), 3)]
    return lines


def _failure(record: "Record") -> tuple[str, str]:
    assert record.failure is not None
    where = " ".join(f"{name} {int(number)}" for name, number in record.address.where.items())
    return f"{where} at epoch {record.failure['epoch']}", record.failure["cause"]


def _variant(config: Mapping[str, Any], choices: Mapping[str, Any], options: str) -> str:
    """A name for the options that have no folder of their own: what earlier versions called them, where there
    are fits of that name and none of the present one."""
    name, before = folder_name(options), options.replace("/", "~")
    if len(before) > _LONGEST_VARIANT:
        before = f"{before[: _LONGEST_VARIANT - 9]}~{hashlib.sha256(before.encode()).hexdigest()[:8]}"
    if name == before:
        return name
    own = (f"{key}={glob.escape(choices[key])}" for key in ("objective", "error"))
    places = Path(config["outputs"], str(config["study"])).glob(f"dataset=*/{'/'.join(own)}/lr=*/variant=*")
    found = {place.name.partition("=")[2] for place in places}
    return before if before in found and name not in found else name


@contextmanager
def _training_bar(
    jobs: Sequence[_Left], works: Sequence["Work"], shown: bool
) -> Iterator[tuple[Callable[["Batch", int, int, float], None], Callable[[int], Callable[[str], None]]]]:
    """Progress on a terminal: of each job that is under way its objective value and rate; of several, how far
    they are together. Silent where stderr is not a terminal. What is called when a job has ended gives what
    prints lines about it."""
    with job_bar(shown) as bar:
        totals = [len(job.records) * job.config["epochs"] for job in jobs]
        efforts = [total * work.effort for total, work in zip(totals, works, strict=True)]
        everything = (
            bar.add_task(f"{len(jobs)} jobs", total=sum(efforts), state="") if len(jobs) > 1 else None
        )
        tasks: dict[int, TaskID] = {}
        done: dict[tuple[int, int], tuple[int, int, float]] = {}
        completed = [0.0] * len(jobs)

        def together() -> None:
            if everything is not None:
                share = (c / t * e for c, t, e in zip(completed, totals, efforts, strict=True))
                bar.update(everything, completed=sum(share))

        def update(batch: "Batch", size: int, epoch: int, objective: float) -> None:
            job, fits = batch.job, len(jobs[batch.job].records)
            if job not in tasks:
                noun = "fit" if fits == 1 else "fits"
                tasks[job] = bar.add_task(
                    f"{jobs[job].label}, {fits} {noun}", total=totals[job], state="starting"
                )
            done[job, batch.number] = (size, epoch, objective)
            own = [of for (number, _), of in done.items() if number == job]
            completed[job] = sum(size * epoch for size, epoch, _ in own)
            mean = sum(size * value for size, _, value in own) / sum(size for size, _, _ in own)
            elapsed = next(task.elapsed or 0.0 for task in bar.tasks if task.id == tasks[job])
            rate = completed[job] / fits / max(elapsed, 1e-9)
            state = f"objective {mean:.4g}, {rate:.{0 if rate >= 10 else 1}f} epochs/s"
            bar.update(tasks[job], completed=completed[job], state=state)
            together()

        def ended(job: int) -> Callable[[str], None]:
            completed[job] = totals[job]
            if job in tasks:
                bar.remove_task(tasks[job])
            together()
            # Over what others say on the same terminal bars would be drawn.
            return bar.console.print if OUT.is_terminal and not bar.disable else OUT.print

        yield update, ended
