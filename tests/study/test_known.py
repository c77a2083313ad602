"""Sequential PK-PD: kinetics that another fit has found are known, as population parameters beside their data
(PPP&D) or as individual parameters (IPP)."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from medcm_cli import load_study, predict, runs
from medcm_cli.errors import InputError
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.job import Job
from medcm_cli.study.known import with_known
from medcm_cli.study.restore import restore
from tests.helpers import configuration

EFFECT = "E0: {typical: 40}, SLOPE: {typical: 2}"
PK = "CL: {typical: 2, weight: {power: {initial: 0.5}}}, V1: {typical: 20}"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patients, a dose at once, levels (DVID 1) and an effect (DVID 2)."""
    generator, rows = np.random.default_rng(4), []
    for patient in range(1, 9):
        cl, v = 2 * np.exp(0.3 * generator.standard_normal()), 20 * np.exp(0.2 * generator.standard_normal())
        of = {"ID": patient, "WT": 50.0 + 5 * patient}
        rows.append({**of, "TIME": 0.0, "AMT": 100.0, "DVID": 1})
        for time in (1.0, 4.0, 9.0, 20.0):
            level = 100 / v * np.exp(-cl / v * time)
            values = (
                level * np.exp(0.1 * generator.standard_normal()),
                40 + 2 * level + generator.standard_normal(),
            )
            rows += [{**of, "TIME": time, "DV": value, "DVID": dvid} for dvid, value in enumerate(values, 1)]
    path = tmp_path_factory.mktemp("known") / "both.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


BOTH = (
    "endpoints={cp: {dvid: 1, error: proportional, unit: mg/L}, "
    "e: {dvid: 2, output: output, error: additive, unit: '-', size: 40}}"
)


def options_of(table: Path, outputs: Path, *options: str) -> dict[str, Any]:
    given = [
        *("dataset=table", "dataset.name=both", "dataset.units={time: h, amount: mg, level: mg/L}"),
        "dataset.covariates={weight: {column: WT, scale: 150, reference: 70, unit: kg}}",
        *("split=all", "network=equations", "omega=diagonal", "dtype=float64", "training.protocol=paper"),
    ]
    return configuration(table, outputs, *given, *options)


def pk_of(table: Path, outputs: Path, *options: str, written: bool = True) -> dict[str, Any]:
    pk = [
        *(
            "study=pk",
            "pk=one_compartment",
            "+dataset.keep={DVID: [1]}",
            "error=proportional",
            "objective=foce",
        ),
        *("random_effects=[CL,V1]", "omega=full", "learning_rate=0.05"),
        *([f"+network.equations={{{PK}}}"] if written else []),
    ]
    return options_of(table, outputs, *pk, "epochs=30", "tail=0", *options)


def pd_of(table: Path, outputs: Path, *options: str, pk: str = PK) -> dict[str, Any]:
    both = [
        *("pk=effect_linear", "+pk.parameters=[CL,V1,E0,SLOPE]", "+pk.amount_per_level=1", BOTH),
        *("error=endpoints", "objective=fo", f"+network.equations={{{pk}, {EFFECT}}}"),
        *("random_effects=[CL,V1,E0]", "omega=[[CL,V1]]"),
    ]
    return options_of(table, outputs, *both, *options)


def run(config: dict[str, Any]) -> list[tuple[Path, runs.Record]]:
    job = Job.build(config)
    job.run(list(job.plan().records.values()))
    return finished([Path(config["outputs"], config["study"])])


@pytest.fixture(scope="module")
def kinetics(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ((folder, _),) = run(pk_of(table, tmp_path_factory.mktemp("pk")))
    return folder


def test_population_parameters_are_those_fixed_by_hand(table: Path, tmp_path: Path, kinetics: Path) -> None:
    """The values are the ones that the fit's tables report."""
    config = with_known(pd_of(table, tmp_path, f"fixed={{population: '{kinetics}'}}"))
    last = pd.read_parquet(kinetics / "history.parquet").iloc[-1]
    (fit,) = restore(finished([kinetics]))
    estimates, model = fit.estimates, fit.problem.model
    zeta = model.network.typical(estimates, {"weight": torch.full((1,), 70.0, dtype=torch.float64)})
    by_hand = {"CL": zeta["CL"].item(), "V1": zeta["V1"].item(), "rho_CL_V1": last["rho_21"]}
    by_hand |= {"omega_CL": last["omega_1"], "omega_V1": last["omega_2"]}
    by_hand |= {"sigma_proportional_cp": last["sigma_proportional"]}
    coefficient = next(iter(model.coefficients(estimates)))
    by_hand[coefficient] = model.coefficients(estimates)[coefficient][0].item()
    found = {name: of["fixed"] for name, of in config["initial"].items()}
    assert found == pytest.approx(by_hand, rel=1e-6)
    assert config["fixed"] is None
    same = copy.deepcopy(pd_of(table, tmp_path))
    same["initial"] = {name: {"fixed": value} for name, value in found.items()}
    one, other = (Job.build(of).train([(1, 1)]) for of in (config, same))
    assert torch.equal(one.checkpoints, other.checkpoints)
    assert torch.equal(one.objective, other.objective)
    # Nothing of the kinetics is trained.
    trained = {name for name in one.layout.names if "CL" in name or "V1" in name}
    assert not trained
    assert one.failures == (None,)


def test_individual_parameters_are_those_of_each_subject(table: Path, tmp_path: Path, kinetics: Path) -> None:
    config = with_known(pd_of(table, tmp_path, "omega=diagonal", f"fixed={{individual: '{kinetics}'}}"))
    assert config["random_effects"] == ["E0"]
    ((folder, record),) = run(config)
    (fit,) = restore([(folder, record)])
    population, model = fit.population, fit.problem.model
    zeta = model.typical(fit.estimates, population)
    effects = pd.read_parquet(kinetics / "random_effects.parquet")
    (of_pk,) = restore(finished([kinetics]))
    typical = of_pk.problem.model.typical(of_pk.estimates, of_pk.population)
    for place, name in enumerate(("CL", "V1"), 1):
        expected = typical[name].expand(1, 8, 1)[0, :, 0].double().numpy() * np.exp(effects[f"eta_{place}"])
        np.testing.assert_allclose(zeta[name].expand(1, 8, 1)[0, :, 0], expected, rtol=1e-5)
    # Written out in the record: the other fit is not needed any more.
    assert json.loads((folder / "run.json").read_text())["config"]["known"]["known_CL"]["3"] > 0
    by_column = pd.read_csv(table)
    for name in ("CL", "V1"):
        by_column[f"known_{name}"] = by_column["ID"].map(
            {int(k): v for k, v in config["known"][f"known_{name}"].items()}
        )
    other = tmp_path / "columns.csv"
    by_column.to_csv(other, index=False)
    known = "{}: {{typical: {{fixed: 1}}, known_{}: {{power: 1}}}}"
    equations = ", ".join(known.format(name, name) for name in ("CL", "V1"))
    entry = "known_{}: {{column: known_{}, scale: 100, reference: 1, unit: '-'}}"
    covariates = ", ".join(entry.format(name, name) for name in ("CL", "V1"))
    options = "omega=diagonal", "random_effects=[E0]", f"+dataset.covariates={{{covariates}}}"
    hand = Job.build(pd_of(other, tmp_path / "hand", *options, pk=equations))
    torch.testing.assert_close(hand.train([(1, 1)]).objective, Job.build(config).train([(1, 1)]).objective)


REFUSED = {
    "fixed={population: FOLDER, sigma: {additive: 1}}": "expected the folder of one fit",
    "fixed={population: nowhere}": "nowhere",
    "fixed={population: FOLDER} dataset.units={time: d,amount: mg,level: mg/L}": "has h as its unit of time",
    "fixed={population: FOLDER} random_effects=[CL,E0] omega=diagonal": "V1 varies between subjects",
    "fixed={population: FOLDER} +initial={CL: 3}": "initial.CL: fixed.population says it, too",
    "fixed={individual: FOLDER} random_effects=[CL,V1] omega=diagonal": "no random effect is left",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_does_not_fit_is_refused_in_a_line(
    table: Path, tmp_path: Path, kinetics: Path, given: str
) -> None:
    options = [
        word.replace("FOLDER", f"'{kinetics}'")
        for word in given.replace(": ", ":").replace(", ", ",").split(" ")
    ]
    with pytest.raises(InputError) as caught:
        with_known(pd_of(table, tmp_path, *options))
    assert REFUSED[given] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_subject_without_individual_parameters_is_refused(
    table: Path, tmp_path: Path, kinetics: Path
) -> None:
    frame = pd.read_csv(table)
    more = tmp_path / "more.csv"
    pd.concat([frame, frame[frame["ID"] == 1].assign(ID=99)]).to_csv(more, index=False)
    config = with_known(pd_of(more, tmp_path, "omega=diagonal", f"fixed={{individual: '{kinetics}'}}"))
    with pytest.raises(InputError, match=r"column 'ID': is 99, of whom the fit .* has no known_"):
        Job.build(config)


NETWORKS = {
    "in equations": (
        "network=equations",
        "+network.equations={CL: {typical: 2, weight: {network: [4]}}, V1: {typical: 20}}",
    ),
    "branches": (
        "network=multi_branch",
        "network.branches=[{inputs: [weight], hidden: [4], heads: [CL, V1]}]",
        "network.global_parameters=[]",
        "network.initial={CL: 2, V1: 20}",
    ),
    "a parameter of each fit": (
        "network=none",
        "network.global_parameters=[CL,V1]",
        "network.initial={CL: 2, V1: 20}",
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_the_network_of_a_fit_is_known(table: Path, tmp_path: Path, network: str) -> None:
    """Typical parameters are those of the other fit, and the likelihood that of these as data."""
    ((folder, _),) = run(pk_of(table, tmp_path, *NETWORKS[network], written=False))
    (of_pk,) = restore(finished([folder]))
    config = with_known(pd_of(table, tmp_path, f"fixed={{population: '{folder}'}}"))
    ((_, record),) = fits = run(config)
    (fit,) = restore(fits)
    model, population = fit.problem.model, fit.population
    typical = {}
    for name in ("CL", "V1"):
        typical[name] = of_pk.problem.model.typical(of_pk.estimates, of_pk.population)[name].expand(1, 8, 1)
        found = model.typical(fit.estimates, population)[name].expand(1, 8, 1)
        torch.testing.assert_close(found, typical[name], rtol=1e-6, atol=0)
    effects = pd.read_parquet(folder / "random_effects.parquet")
    eta = [torch.tensor(effects[name].to_numpy(copy=True))[None, :, None] for name in ("eta_1", "eta_2")]
    z = of_pk.problem.model.individual(typical, eta, of_pk.population)
    individual = with_known(pd_of(table, tmp_path, "omega=diagonal", f"fixed={{individual: '{folder}'}}"))
    for name in ("CL", "V1"):
        own = list(individual["known"][f"known_{name}"].values())
        np.testing.assert_allclose(own, z[name][0, :, 0], rtol=1e-5)
    assert not {name for name in fit.state.trained if "weight" in name or "CL" in name or "V1" in name}
    assert record.config["random_effects"] == ["CL", "V1", "E0"]
    # The same with a column of each.
    frame = pd.read_csv(table)
    for name, value in typical.items():
        frame[name] = frame["ID"].map(dict(zip(range(1, 9), value[0, :, 0].tolist(), strict=True)))
    columns = tmp_path / "columns.csv"
    frame.to_csv(columns, index=False)
    entry = "of_{}: {{column: {}, scale: 100, reference: 1, unit: '-'}}"
    equations = ", ".join(f"{n}: {{typical: {{fixed: 1}}, of_{n}: {{power: 1}}}}" for n in typical)
    covariates = ", ".join(entry.format(n, n) for n in typical)
    of_columns = pd_of(columns, tmp_path / "hand", f"+dataset.covariates={{{covariates}}}", pk=equations)
    of_columns["initial"] = config["initial"]
    hand = Job.build(of_columns).train([(1, 1)])
    torch.testing.assert_close(hand.objective, Job.build(config).train([(1, 1)]).objective, rtol=1e-5, atol=0)


def test_predictions_have_the_kinetics_of_each_subject(table: Path, tmp_path: Path, kinetics: Path) -> None:
    """By the closed form at what the other fit says of him; of the unit of the effect is what is one."""
    run(with_known(pd_of(table, tmp_path, "omega=diagonal", f"fixed={{individual: '{kinetics}'}}")))
    study = load_study(tmp_path / "default")
    found = predict(study, table, times=[2.0, 30.0], draws=20)
    (of_pk,) = restore(finished([kinetics]))
    model, effects = of_pk.problem.model, pd.read_parquet(kinetics / "random_effects.parquet")
    zeta = model.typical(of_pk.estimates, of_pk.population)
    z = {
        name: zeta[name].expand(1, 8, 1)[0, :, 0].numpy() * np.exp(effects[f"eta_{place}"].to_numpy())
        for place, name in enumerate(("CL", "V1"), 1)
    }
    cp = found.curve[found.curve["endpoint"] == "cp"]
    for time in (2.0, 30.0):
        want = 100 / z["V1"] * np.exp(-z["CL"] / z["V1"] * time)
        for column in ("typical", "median", "lower_90"):
            np.testing.assert_allclose(cp.loc[cp["time"] == time, column], want, rtol=1e-4)
    assert "known" in set(found.warnings["kind"])
    units = found.parameters.drop_duplicates("parameter").set_index("parameter")["unit"]
    assert dict(units[["E0", "SLOPE", "CL"]]) == {"E0": "-", "SLOPE": "1/(mg/L)", "CL": "L/h"}
    stranger = pd.read_csv(table).query("ID == 1").assign(ID=77)
    with pytest.raises(InputError, match=r"is 77, of whom .*expected a column known_CL"):
        predict(study, stranger)
    own = predict(study, stranger.assign(known_CL=3.0, known_V1=10.0), times=[2.0, 4.0], draws=20)
    assert own.curve["typical"].iloc[0] == pytest.approx(10 * np.exp(-0.6), rel=1e-4)


def test_a_new_patient_has_the_kinetics_of_the_known_network(table: Path, tmp_path: Path) -> None:
    ((folder, _),) = run(pk_of(table, tmp_path, *NETWORKS["branches"], written=False))
    run(with_known(pd_of(table, tmp_path, f"fixed={{population: '{folder}'}}")))
    patient = pd.read_csv(table).query("ID == 1 and AMT > 0").assign(ID=77, WT=63.0)
    both = [
        predict(load_study(tmp_path / name), patient, times=[2.0, 30.0], draws=20).curve
        for name in ("pk", "default")
    ]
    levels = [curve if "endpoint" not in curve else curve[curve["endpoint"] == "cp"] for curve in both]
    np.testing.assert_allclose(levels[1]["typical"], levels[0]["typical"], rtol=1e-5)
