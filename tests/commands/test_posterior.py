"""``medcm posterior``: what it writes, what it leaves out because it is done, and what it refuses."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import arviz_base
import numpy as np
import pandas as pd
import pytest

from medcm_cli import runs
from medcm_cli.commands.posterior import posterior
from medcm_cli.errors import InputError
from medcm_cli.report.section import Section
from medcm_cli.study.job import Job
from tests.helpers import configuration

SHORT = ("warmup=10", "draws=4", "chains=2")
SIMULATED = ("network=truth", "fixed=truth")


@pytest.fixture(scope="module")
def fitted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("posterior") / "outputs"
    for objective in ("vi", "mse"):
        job = Job.build(configuration(data, outputs, "fold=2", "replicate=[1,2]", f"objective={objective}"))
        job.run(list(job.plan().records.values()))
    return outputs


@pytest.fixture
def command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, list[Section]]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["medcm"])

    def run(*arguments: str) -> tuple[Path, list[Section]]:
        shown: list[Section] = []
        own = () if any(argument.startswith("run=") for argument in arguments) else (f"dataset.path={data}",)
        posterior([*SHORT, *own, *arguments], shown.append)
        return tmp_path / "outputs" / "default" / "posterior", shown

    return run


@pytest.mark.slow
def test_a_posterior_with_the_population_known(
    command: Callable[..., tuple[Path, list[Section]]],
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, (table,) = command(*SIMULATED, "fold=2")
    shown = [f"eta {name}, log scale, 8 subjects" for name in ("CL", "V1")]
    assert [row[0] for row in table.cells] == shown
    said = capsys.readouterr()
    assert "8 subjects in" in said.out
    # So few draws cannot be good ones, and the warning says whose.
    drawn_for = pd.read_csv(data / "train_set_2.csv").iloc[:, 0].to_numpy()
    assert "effective sample size below 400: subjects" in said.err
    assert all(f"virtual_{number}" in said.err for number in drawn_for)
    assert {path.name for path in folder.joinpath("known").iterdir()} == {
        "draws.parquet",
        "diagnostics.parquet",
        "posterior.json",
    }
    draws = pd.read_parquet(folder / "known" / "draws.parquet")
    assert len(draws) == 2 * 4 * 8
    one = draws[(draws["chain"] == 1) & (draws["draw"] == 3)]
    assert one["subject"].tolist() == drawn_for.tolist()
    record = json.loads((folder / "known" / "posterior.json").read_text())
    assert record["status"] == "complete"
    assert record["data"]["fingerprint"] == runs.fingerprint([Path(record["data"]["source"])])
    assert record["versions"].keys() >= {"numpyro", "jax", "torch", "medcm"}
    assert list(runs.find(folder.parent)) == []  # it is no fit

    first = (folder / "known" / "draws.parquet").read_bytes()
    _, nothing = command(*SIMULATED, "fold=2")
    assert nothing == []
    assert "done already" in capsys.readouterr().out
    command(*SIMULATED, "fold=2", "overwrite=true")
    assert (folder / "known" / "draws.parquet").read_bytes() == first  # the same seed
    with pytest.raises(InputError, match="seed differs"):
        command(*SIMULATED, "fold=2", "seed=1")

    def called(*_: object) -> None:
        raise InputError("sampled again")

    (folder / "known" / "draws.parquet").write_bytes(first[:100])  # damaged
    monkeypatch.setattr("medcm_cli.commands.posterior_job.sample", called)
    with pytest.raises(InputError, match="sampled again"):
        command(*SIMULATED, "fold=2")


@pytest.mark.slow
def test_arviz_reads_a_joint_posterior(command: Callable[..., tuple[Path, list[Section]]]) -> None:
    folder, (table,) = command("network=truth", "population=joint", "lkj=2", "study=other", "name=mine")
    folder = folder.parents[1] / "other" / "posterior" / "mine"
    names = ["sigma_additive", "omega_1", "omega_2", "rho_21"]
    shown = ["sigma additive, IU/mL", "omega CL", "omega V1", "rho CL:V1"]
    assert [row[0].removesuffix(", log scale") for row in table.cells][:4] == shown
    draws = pd.read_parquet(folder / "draws.parquet").set_index(["chain", "draw", "position"])
    held = arviz_base.convert_to_dataset(draws.filter(like="eta").to_xarray())
    assert dict(held.sizes) == {"chain": 2, "draw": 4, "position": 8}
    population = pd.read_parquet(folder / "population.parquet").set_index(["chain", "draw"])
    of_population = arviz_base.convert_to_dataset(population.to_xarray())
    assert set(of_population.data_vars) == {*names, "lp", "diverging"}
    found = pd.read_parquet(folder / "diagnostics.parquet").set_index(["quantity", "position"])
    mean = held["eta_2"].mean(("chain", "draw")).to_numpy()
    np.testing.assert_allclose(found.loc[["eta_2"], "mean"].to_numpy(), mean)
    np.testing.assert_allclose(
        found.loc[["rho_21"], "sd"].to_numpy(), [of_population["rho_21"].std(ddof=1).item()]
    )


@pytest.mark.slow
def test_a_posterior_of_a_fit(fitted: Path, command: Callable[..., tuple[Path, list[Section]]]) -> None:
    """For its training subjects, beside its study, and for its test subjects where they are asked for."""
    (folder,) = (f for f in runs.find(fitted) if "objective=vi" in str(f) and f.name == "replicate=2")
    command(f"run='{folder}'")
    (made,) = (fitted / "default" / "posterior").iterdir()
    assert made.name == "known-vi-default-fold=02-replicate=2"
    effects = pd.read_parquet(folder / "random_effects.parquet")
    draws = pd.read_parquet(made / "draws.parquet", columns=["chain", "draw", "subject"])
    one = draws[(draws["chain"] == 0) & (draws["draw"] == 0)]
    assert one["subject"].tolist() == effects["subject"].tolist()
    assert json.loads((made / "posterior.json").read_text())["run"] == str(folder)
    command(f"run='{folder}'", "subjects=test", "name=test")
    tested = pd.read_parquet(made.with_name("test") / "draws.parquet")["subject"].unique()
    assert set(tested).isdisjoint(effects["subject"])
    (other,) = (f for f in runs.find(fitted) if "objective=mse" in str(f) and f.name == "replicate=2")
    with pytest.raises(InputError, match="objective mse estimates no"):
        command(f"run='{other}'")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("network=truth",), "sigma and Omega not known"),
        (("network=truth", "fixed={sigma: {additive: 0.03}}"), "Omega not known"),
        ((), "network: this one is trained"),
        ((*SIMULATED, "population=joint"), "fixed"),
        ((*SIMULATED, "population=some"), "population is 'some'; expected known or joint"),
        ((*SIMULATED, "subjects=few"), "subjects is 'few'"),
        ((*SIMULATED, "chains=0"), "chains is 0"),
        ((*SIMULATED, "draws=2.5"), "draws is 2.5"),
        ((*SIMULATED, "target_accept=1"), "target_accept is 1"),
        ((*SIMULATED, "dtype=int8"), "dtype is 'int8'"),
        ((*SIMULATED, "fold=[1,2]"), "one fold"),
        ((*SIMULATED, "name=a/b"), "name is 'a/b'"),
        (("network=truth", "population=joint", "lkj=0"), "lkj is 0"),
        (("run=nowhere",), "nowhere: no such folder"),
        (("run=nowhere", "pk=one_compartment"), "pk and run=..."),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    command: Callable[..., tuple[Path, list[Section]]], arguments: tuple[str, ...], what: str
) -> None:
    with pytest.raises(InputError, match=re.escape(what)):
        command(*arguments)


def test_a_folder_of_several_fits_is_refused(
    fitted: Path, command: Callable[..., tuple[Path, list[Section]]]
) -> None:
    with pytest.raises(InputError, match="4 complete fits"):
        command(f"run='{fitted}'")


def test_what_is_odd_in_the_table_is_told(
    command: Callable[..., tuple[Path, list[Section]]],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `medcm fit` tells it."""

    def called(*_: object) -> None:
        raise InputError("sampled")

    monkeypatch.setattr("medcm_cli.commands.posterior_job.sample", called)
    shutil.copytree(data, tmp_path / "odd", ignore=shutil.ignore_patterns("*.parquet"))
    path = tmp_path / "odd" / "simulation.csv"
    table = pd.read_csv(path)
    table.assign(amt=2 * table["rate"] * table["duration"]).to_csv(path, index=False)
    with pytest.raises(InputError, match="sampled"):
        command(*SIMULATED, f"dataset.path={tmp_path}/odd")
    (line,) = capsys.readouterr().err.splitlines()
    assert "column 'amt': is " in line
    assert "rate times duration is " in line


@pytest.mark.parametrize(
    ("argument", "what"),
    [("walks=3", "walks"), ("--fast", "medcm posterior has no such flag"), ("pk=no", "pk")],
)
def test_options_that_do_not_exist(
    command: Callable[..., tuple[Path, list[Section]]], argument: str, what: str
) -> None:
    with pytest.raises(InputError, match=what):
        command(argument)
