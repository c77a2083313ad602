"""The command that repeats a study: it composes, through Hydra, to the configuration that was recorded."""

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from medcm_cli.commands.fit import coalesce
from medcm_cli.files import folder_name
from medcm_cli.haemophilia.virtual import write_study
from medcm_cli.pk import OdeModel
from medcm_cli.runs import Address, Record
from medcm_cli.study.identity import identity
from medcm_cli.study.job import Job
from medcm_cli.study.options import as_config, complete, conf_dir
from medcm_cli.study.problem import model_of
from medcm_cli.study.reproduction import commands, overrides
from tests.helpers import SMALL

ADDRESS = Address("default", "simulated", "vi", "additive", 0.1, "default", 1, 1)


def composed(*options: str) -> dict[str, Any]:
    """What ``medcm fit`` makes of the options of one job."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", coalesce(options), return_hydra_config=True)
    hydra = config.hydra
    labels = {name: hydra.runtime.choices[name] for name in ("objective", "error")}
    labels["variant"] = folder_name(str(hydra.job.override_dirname))
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return as_config(config) | {"labels": labels}


def planned(arguments: Sequence[str]) -> list[Record]:
    """The records of all jobs of a command, without training them."""
    records: list[Record] = []
    for objective in next(a for a in arguments if a.startswith("objective="))[10:].split(","):
        rest = [a for a in arguments if not a.startswith("objective=") and a not in ("fit", "-m")]
        records += Job.build(composed(f"objective={objective}", *rest)).plan().records.values()
    return records


@pytest.mark.slow
def test_the_commands_give_the_same_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same hash, of configuration, data and folds, and same folder."""
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "data", SMALL)
    odd = "study='it''s <b>&\"$HOME\" $(ls)'".replace("''", "\\'")
    nested = ["objective=vi", "dataset=prophylaxis", "network=real_data", "error=combined", "split=nested"]
    given = [
        ["objective=mse,vi", "dataset.path=data", "fold=range(1,4)", "replicate=1,2", "seed=3", "epochs=7"],
        [*nested, "outer=range(1,3)", "inner=2,5", "tail=3", "learning_rate=0.03", "variant=slow"],
        ["objective=foce", "dataset=table", "dataset.path=data/simulation.csv", "split=bootstrap", odd],
    ]
    records = [record for arguments in given for record in planned(arguments)]
    assert len(records) == 12 + 4 + 1
    found = commands(records)
    assert [command.note for command in found] == ["", "", ""]
    assert [command.fits for command in found] == [12, 4, 1]
    again = []
    for command in found:
        program, *arguments = shlex.split(command.text)
        assert (program, arguments) == ("medcm", list(command.arguments))
        again += planned(arguments)
    assert sorted((r.config_hash, str(r.address)) for r in again) == sorted(
        (r.config_hash, str(r.address)) for r in records
    )


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["seed=5"],  # which the seed of a split follows
        ["learning_rate=0.05"],  # which the optimiser follows
        ["network=fully_connected", "omega=diagonal"],
        pytest.param(["dataset=prophylaxis", "network=real_data", "split=nested"], marks=pytest.mark.slow),
        ["dataset=prophylaxis", "network=real_data", "split=nested", "dataset.path=a b.csv"],
        ["pk=one_compartment", "network=none", "network.global_parameters=[CL,V1]", "random_effects=[CL]"],
        ["objective=foce", "objective.formulation=linearised", "optimizer.lr=0.2"],
        ["fixed={omega:[[0.04,0],[0,0.02]],sigma:{additive:0.03}}", "dtype=float64"],
        ["~dataset.covariates.vwf", "+dataset.covariates.age={column:age,scale:85,reference:40,unit:y}"],
        ["dataset=table", "dataset.path=1.csv", "+dataset.keep.DVID=[1,2]", "+dataset.columns.dv=CONC"],
        ["dataset.name='1'", "dataset.level_unit='%'", "dataset.level_scale=9", "dataset.events='a=b, c'"],
        [
            "dataset.path=a.csv",
            "dataset.units.amount=mg",
            "dataset.units.level=ng/mL",
            "dataset.level_unit=ug/L",
        ],
        ["dataset.units=null", "dataset.level_unit=mg/L", "dataset.level_scale=1", "pk.amount_per_level=1"],
    ],
)
def test_options_that_were_given_are_found_again(options: list[str]) -> None:
    """No more and no fewer, but for the variant: the folder names them in its own order."""
    config = composed(*options)
    labels = config["labels"]
    address = dataclasses.replace(
        ADDRESS,
        objective=labels["objective"],
        variant=labels["variant"] or "default",
    )
    found, note = overrides(config, address)
    assert note == ""
    again = composed(*found)
    assert identity(again) == identity(config)
    assert again["dataset"]["path"] == config["dataset"]["path"]
    named = [option.lstrip("+~").partition("=")[0] for option in found if not option.startswith("variant=")]
    expected = [option.lstrip("+~").partition("=")[0] for option in options]
    assert all(any(name.startswith(wanted) for wanted in expected) for name in named)
    assert all(any(name.startswith(wanted) for name in named) for wanted in expected)


def record(fold: int, replicate: int, config: dict[str, Any], objective: str = "vi") -> Record:
    address = dataclasses.replace(ADDRESS, fold=fold, replicate=replicate, objective=objective)
    return Record("complete", address, "0", config, {}, None, 0, {})


def test_fits_that_are_no_product_of_axes_are_each_named_once() -> None:
    config = composed()
    given = [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (4, 2), (5, 1)]
    found = commands([record(fold, replicate, config) for fold, replicate in given])
    named = []
    for command in found:
        lists = [
            a.partition("=")[2] for a in coalesce(command.arguments[1:]) if a.startswith(("fold", "rep"))
        ]
        numbers = [[int(n) for n in values.strip("[]").split(",")] for values in lists]
        product = list(itertools.product(*numbers))
        assert command.fits == len(product)
        named += product
    assert sorted(named) == given
    assert len(found) == 3


def test_an_objective_of_another_folder_is_spelt_out() -> None:
    config = composed("objective.samples=1")
    config["labels"] = {"objective": "vi_1", "error": "additive", "variant": ""}
    (command,) = commands([record(1, 1, config, "vi_1")])
    assert "objective=vi" in command.arguments
    assert "objective.samples=1" in command.arguments
    assert "variant=vi_1" in command.arguments  # not in the folder of vi itself
    assert "vi_1 is a choice of a folder" in command.note


@pytest.mark.parametrize("config", [{}, {"labels": {}, "dataset": {}}, {"dataset": None}])
def test_a_record_that_says_too_little_is_no_error(config: dict[str, Any]) -> None:
    (command,) = commands([record(1, 1, config)])
    assert command.arguments == ()
    assert "cannot be derived" in command.note


def test_what_bioavailability_keeps_identifies_a_result_only_where_there_is_any() -> None:
    before: dict[str, Any] = {"bioavailability": {}}
    for keeps in ("rate", "duration"):
        assert identity({"pk": {**before, "bioavailability_keeps": keeps}}) == identity({"pk": before})
    before["bioavailability"] = {1: "F"}
    assert identity({"pk": {**before, "bioavailability_keeps": "duration"}}) == identity({"pk": before})
    assert identity({"pk": {**before, "bioavailability_keeps": "rate"}}) != identity({"pk": before})


def test_a_model_that_says_of_no_method_is_what_it_was_and_a_new_one_what_is_now_the_default() -> None:
    own = (
        "pk=michaelis_menten",
        "network=none",
        "network.global_parameters=[VM,KM,V1]",
        "random_effects=[VM]",
    )
    recorded = complete(composed(*own, "~pk.method"))
    assert recorded["pk"]["method"] == "auto"
    for method in ("auto", "dopri5"):
        pk = model_of(recorded).pk
        assert isinstance(pk, OdeModel)
        assert pk.method == method
        recorded["pk"].pop("method", None)  # as results of before may have none
    assert "method" not in identity(complete(recorded))["pk"]
    assert identity({"pk": {"method": "dopri5", "norm": "rms"}})["pk"] == {"method": "dopri5"}
