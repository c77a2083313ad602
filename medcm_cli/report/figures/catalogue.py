"""All figures that run folders have, one at a time: what ``medcm plot`` writes and a report shows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from medcm_cli.errors import InputError
from medcm_cli.files import one_line, write_text
from medcm_cli.report.figures import effects, goodness, posteriors, style, subjects, training
from medcm_cli.report.figures.saved import result, savers
from medcm_cli.runs.bands import effects as learned_effects
from medcm_cli.runs.sweeps import Found, Method, Sweep, collect, common_fold, typical_fit
from medcm_cli.runs.walk import Fit

if TYPE_CHECKING:
    from medcm_cli.analysis.diagnostics import Diagnosis
    from medcm_cli.study.restore import Restored


def figures(
    sweep: Sweep,
    missing: list[str],
    epochs: Sequence[int] = (),
    fold: int | None = None,
    replicate: int | None = None,
    trust: bool = False,
) -> Iterator[style.Drawn]:
    """The figures of one study and data set, drawn as they are asked for.

    :param missing: gets a line for each thing that cannot be drawn, and why.
    :param epochs: at which learned effects are shown too.
    :param fold: which fit stands for its method where one is looked at, ``replicate`` likewise; by default
        one with the median objective value of a fold that is the same for all methods (``common_fold``).
    :param trust: as ``study.restore.restore`` has it.
    """
    where = f"{sweep.study}, {sweep.dataset}"
    if sweep.unfinished:
        missing.append(f"{where}: {sweep.unfinished} fits have not finished")
    for measure in training.MEASURES:
        drawn = training.over_epochs(sweep, measure)
        if drawn is not None:
            yield drawn
    chosen = _restored(sweep, missing, fold, replicate, trust)
    yield from _effects(sweep, [restored for _, _, restored in chosen], missing, epochs)
    yield from _posteriors(sweep, missing)
    from medcm_cli.analysis.diagnostics import diagnose

    diagnosed: list[tuple[Method, Fit, Diagnosis]] = []
    for method, fit, restored in chosen:
        diagnosed.append((method, fit, diagnose(restored)))
    yield from _diagnosed(sweep, diagnosed)


def _diagnosed(sweep: Sweep, diagnosed: Sequence[tuple[Method, Fit, "Diagnosis"]]) -> Iterator[style.Drawn]:
    """How fits meet their data, each endpoint apart."""
    for method, fit, diagnosis in diagnosed:
        for part in diagnosis.of_endpoints:
            yield from goodness.of_method(sweep, method, fit, part)
    by_endpoint = _by_endpoint(diagnosed)
    checks = [goodness.predictive_check(sweep, chosen) for chosen in by_endpoint]
    effects = [goodness.random_effects(sweep, diagnosed), goodness.between_occasions(sweep, diagnosed)]
    for drawn in (*checks, *effects):
        if drawn is not None:
            yield drawn
    for chosen in by_endpoint:
        yield from _subjects(sweep, [one for one in chosen if one[2].mixed])


def _by_endpoint(
    diagnosed: Sequence[tuple[Method, Fit, "Diagnosis"]],
) -> list[list[tuple[Method, Fit, "Diagnosis"]]]:
    """Of each endpoint the methods that have it."""
    found: dict[str, list[tuple[Method, Fit, Diagnosis]]] = {}
    for method, fit, diagnosis in diagnosed:
        for part in diagnosis.of_endpoints:
            found.setdefault(part.endpoint, []).append((method, fit, part))
    return list(found.values())


def _subjects(sweep: Sweep, mixed: Sequence[tuple[Method, Fit, "Diagnosis"]]) -> Iterator[style.Drawn]:
    """The pages of subjects of methods with random effects."""
    ends = subjects.limits([diagnosis for _, _, diagnosis in mixed]) if mixed else (0.1, 1.0)
    for method, fit, diagnosis in mixed:
        for page in range(1, subjects.pages(diagnosis) + 1):
            yield subjects.subjects(sweep, method, fit, diagnosis, page, ends)


def _restored(
    sweep: Sweep, missing: list[str], fold: int | None, replicate: int | None, trust: bool
) -> list[tuple[Method, Fit, "Restored"]]:
    """Of each method the fit that stands for it, with its model and data."""
    from medcm_cli.study.restore import restore

    result = []
    common = common_fold(sweep.methods, replicate) if fold is None else fold
    for method in sweep.methods:
        where = f"{sweep.study}, {sweep.dataset}, {method.label}"
        fit = typical_fit(method, common, replicate)
        if fit is None and fold is None:
            fit = typical_fit(method, None, replicate)
        if fit is None:
            which = " of this fold and replicate" if (fold, replicate) != (None, None) else ""
            failed = len(method.fits) - len(method.complete)
            missing.append(f"{where}: no complete fit{which} ({failed} failed), so no goodness of fit")
            continue
        try:
            (restored,) = restore([(fit.folder, fit.record)], trust)
        except InputError as error:
            missing.append(f"{where}: no goodness of fit ({error})")
            continue
        result.append((method, fit, restored))
    return result


def _effects(
    sweep: Sweep, restored: Sequence["Restored"], missing: list[str], epochs: Sequence[int]
) -> Iterator[style.Drawn]:
    from medcm_cli.analysis.effects import covariates, true_effects

    where = f"{sweep.study}, {sweep.dataset}"
    learned: dict[str, pd.DataFrame] = {}
    for method in sweep.methods:
        try:
            learned[method.label] = learned_effects(method, epochs)
        except InputError as error:
            missing.append(str(error))
    truth = true_effects(sweep.methods[0].config)
    values = covariates(restored[0]) if restored else None
    for epoch in (None, *epochs):
        drawn = effects.covariate_effects(sweep, learned, epoch, truth, values)
        if drawn is not None:
            yield drawn
        elif epoch is not None:
            missing.append(f"{where}: no learned effects at epoch {epoch}, which is no checkpoint")


def _posteriors(sweep: Sweep, missing: list[str]) -> Iterator[style.Drawn]:
    for folder in posteriors.folders(sweep):
        try:
            drawn = posteriors.ellipses(sweep, folder)
        except InputError as error:
            missing.append(str(error))
            continue
        if drawn is not None:
            yield drawn


def write_all(
    found: Found,
    out: Path,
    formats: Sequence[str] = style.FORMATS,
    epochs: Sequence[int] = (),
    fold: int | None = None,
    replicate: int | None = None,
    trust: bool = False,
) -> Iterator[tuple[Path, style.Drawn]]:
    """Write every figure to ``out``/study/dataset/, each with its numbers and, in ``figures.md``, its
    caption; gives each with its folder. What is missing is added to ``found.missing``."""
    with savers() as submit:
        for sweep in found.sweeps:
            folder = out / sweep.study / sweep.dataset
            lines = [f"# {sweep.study}, {sweep.dataset}", ""]
            written = []
            for drawn in figures(sweep, found.missing, epochs, fold, replicate, trust):
                written.append(submit(style.write, drawn, folder, formats))
                lines += [f"## {drawn.title}", "", f"{drawn.stem}: {drawn.caption}", ""]
                yield folder, drawn
            for one in written:
                result(one)
            write_text(folder / "figures.md", "\n".join(map(one_line, lines)))


__all__ = ["collect", "figures", "write_all"]
