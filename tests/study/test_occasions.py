"""A study in which CL varies between occasions: what fits write, say and show of Pi, and its standard
error."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.analysis.diagnostics import diagnose
from medcm_cli.analysis.uncertainty import estimate, intervals
from medcm_cli.errors import InputError
from medcm_cli.numerics.streams import Stream
from medcm_cli.objectives import Fo, State
from medcm_cli.report.figures import goodness
from medcm_cli.report.tables import sections
from medcm_cli.runs.summary import summarize
from medcm_cli.runs.sweeps import collect, finished
from medcm_cli.runs.units import named_in
from medcm_cli.study.job import Job
from medcm_cli.study.restore import Restored, restore
from medcm_cli.training.layout import Layout
from tests.helpers import configuration
from tests.objectives import occasions as known

OPTIONS = (
    *("dataset=table", "dataset.name=mine", "split=all", "network=equations", "pk=one_compartment"),
    *("dataset.units={time: h, amount: mg, level: mg/L}", "dtype=float64", "random_effects=[CL,V1]"),
    *("omega=diagonal", "network.equations={CL: {typical: 3}, V1: {typical: 30}}", "objective=fo"),
    *("epochs=30", "checkpoint_every=15"),
)
BY_COLUMN = "occasions={parameters: [CL], column: OCC}"


def write_table(path: Path) -> Path:
    """Fourteen subjects with two or three occasions each, drawn with known sds."""
    rows = known.table((2, 3) * 7)
    generator = np.random.default_rng(5)
    for subject in range(1, 15):
        eta = np.r_[[0.25, 0.2] * generator.standard_normal(2), 0.3 * generator.standard_normal(3)]
        seen = (rows["ID"] == subject) & (rows["EVID"] == 0)
        levels = known.levels(rows, subject, ("CL",), known.TYPICAL, eta)
        rows.loc[seen, "DV"] = levels + 0.3 * generator.standard_normal(len(levels))
    rows.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("occasions")
    job = Job.build(configuration(write_table(folder / "events.csv"), folder, *OPTIONS, BY_COLUMN))
    job.run(list(job.plan().records.values()))
    return folder / "default"


@pytest.fixture(scope="module")
def restored(outputs: Path) -> Restored:
    (found,) = restore(finished([outputs]))
    return found


def test_tables_have_pi_and_kappas(outputs: Path) -> None:
    (folder,) = (path.parent for path in outputs.rglob("history.parquet"))
    history, effects = (pd.read_parquet(folder / f"{name}.parquet") for name in ("history", "random_effects"))
    assert history["pi_CL"].between(0.01, 2).all()
    assert {"eta_1", "cov_22", "kappa_CL_1", "sd_kappa_CL_3"} <= set(effects)
    assert effects["kappa_CL_3"].isna().tolist() == [True, False] * 7  # null where they lack it
    assert effects["sd_kappa_CL_3"].isna().tolist() == [True, False] * 7
    assert not effects.filter(like="kappa_CL_2").isna().any().any()
    assert named_in(pyarrow.parquet.read_schema(folder / "history.parquet"))["pi_CL"] == "-"


def test_summaries_name_pi(outputs: Path) -> None:
    summary = summarize([outputs])
    assert summary.fits["pi_CL"].notna().all()
    shown = [header for section in sections(summary) for header in section.headers]
    assert "pi CL, log scale" in shown


def test_figures_show_kappas(outputs: Path, restored: Restored) -> None:
    diagnosis = diagnose(restored)
    assert len(diagnosis.kappas) == 7 * 2 + 7 * 3
    assert list(diagnosis.kappas) == ["subject", "occasion", "CL"]
    assert diagnosis.pi["CL"] == pytest.approx(float(summarize([outputs]).fits["pi_CL"].iloc[0]), rel=0.05)
    (sweep,) = collect([outputs]).sweeps
    (method,) = sweep.methods
    drawn = goodness.between_occasions(sweep, [(method, method.fits[0], diagnosis)])
    assert drawn is not None
    assert "Shrinkage" in drawn.alt
    assert len(drawn.data) == len(diagnosis.kappas)


def test_the_standard_error_of_pi(restored: Restored) -> None:
    """From the observed information of fo's -2 log L, differentiated twice where LBFGS finds it least."""
    (found,) = intervals(restored, estimate(restored), 0.95)
    assert not isinstance(found, str), found
    row = found[found["method"] == "hessian"].set_index("name").loc["pi_CL"]
    model, population = restored.problem.model, restored.population
    layout = Layout.of(restored.state.trained)
    flat = layout.pack(restored.state.trained).detach()[:, 0].requires_grad_()

    def loss(values: Tensor) -> Tensor:
        return Fo().loss(model, population, State(layout.unpack(values[:, None])), None)[0]

    search = torch.optim.LBFGS([flat], max_iter=60, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = loss(flat)
        value.backward()
        return value

    search.step(closure)
    information = torch.autograd.functional.hessian(loss, flat.detach()) / 2
    place = int(layout.rows(["pi"]).nonzero()[0, 0])
    raw = flat.detach()[place]
    slope = torch.sigmoid(raw)  # of pi by its raw value
    assert row["estimate"] == pytest.approx(float(functional.softplus(raw)), rel=1e-3)
    se = slope * torch.linalg.inv(information)[place, place].sqrt()
    assert row["se"] == pytest.approx(float(se), rel=0.01)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("occasions={column: OCC}", "occasions.parameters is None; expected a list of parameters"),
        ("occasions={parameters: [CL], visits: OCC}", "expected null, or some of parameters"),
        ("occasions={parameters: [CX]}", r"occasions.parameters is \['CX'\]: expected distinct names"),
        ("occasions={parameters: [CL], column: VISIT}", "column 'VISIT' is missing"),
        ("occasions={parameters: [CL], gap: 0}", "occasions.gap is 0; expected a number above 0"),
        ("occasions={parameters: [CL], times: [5, 5]}", "expected times in ascending order"),
        ("occasions={parameters: [CL], times: [5], gap: 3}", "both say when occasions begin"),
        ("occasions={parameters: [CL], structure: none}", "occasions.structure is 'none'; expected full"),
        ("fixed={pi: [[0.04]]}", "fixed.pi: nothing varies between occasions"),
        ("occasions=OCC", "occasions is 'OCC'; expected null, or some of parameters"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, option: str, words: str) -> None:
    path = write_table(tmp_path / "events.csv")
    with pytest.raises(InputError, match=words) as caught:
        Job.build(configuration(path, tmp_path, *OPTIONS, option))
    assert "\n" not in str(caught.value)


def test_a_known_pi_is_not_estimated(tmp_path: Path) -> None:
    path = write_table(tmp_path / "events.csv")
    job = Job.build(configuration(path, tmp_path, *OPTIONS, BY_COLUMN, "fixed={pi: [[0.09]]}"))
    occasions = job.problem.model.occasions
    assert occasions is not None
    values = job.problem.model.init([Stream(0, 1, 1)], torch.float64)
    assert "pi" not in values
    assert float(occasions.cholesky(values)[0][0]) == pytest.approx(0.3)
