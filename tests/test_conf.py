"""The configuration folder: every choice can be built, and the defaults are those of the methods."""

import itertools
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from medcm_cli.data import Format
from medcm_cli.haemophilia.virtual import SAMPLE_TIMES, Settings, Truth
from medcm_cli.model import CovariateNetwork
from medcm_cli.pk import LinearModel, OdeModel
from medcm_cli.study import options
from medcm_cli.study.job import Job
from medcm_cli.study.options import JOB, PROBLEM, conf_dir
from tests.helpers import composed, configuration, needs_of_models

ROOT = Path(__file__).resolve().parents[1]
LEAVES = sorted(path.relative_to(ROOT / "conf").with_suffix("") for path in ROOT.glob("conf/*/*.yaml"))
NAMES = [leaf.as_posix() for leaf in LEAVES]
# What a choice needs beside it.
OF_DOSES = ("pk.column=time", "random_effects=[E0]", "dataset.truth=null")
DIRECT = {
    "linear": ("network.global_parameters=[E0,SLOPE]",),
    "emax": ("network.global_parameters=[E0,EMAX,ED50]",),
    "hill": ("network.global_parameters=[E0,EMAX,ED50,GAMMA]",),
}
PARTNERS = {
    "network/equations": (
        "network.equations={CL: {typical: 0.2, weight: {power: 0.75}, vwf: {power: {initial: -0.5}}}, "
        "V1: {typical: 2, weight: {power: 1}}, Q: {typical: 0.1}, V2: {typical: 0.5}}",
    ),
    **{f"pk/{name}": needs for name, needs in needs_of_models().items()},
    "pk/absorption_transit": (
        *needs_of_models()["absorption_transit"],
        *("dataset.columns.rate=null", "dataset.columns.duration=null", "dataset.bolus_duration=0"),
    ),
    "split/blocks": ("split.size=15",),
    "split/column": ("split.column=set",),
    **{f"pk/dose_response_{form}": ("network=none", *OF_DOSES, *given) for form, given in DIRECT.items()},
    "error/endpoints": ("endpoints={level: {error: additive}}",),
    "dataset/table": ("split=bootstrap",),
    "dataset/events": ("split=all", "network=none", "network.global_parameters=[CL,V1,Q,V2]"),
    "dataset/prophylaxis": ("network=real_data", "split=nested"),
    "dataset/perioperative": ("network=real_data", "split=nested"),
    "network/real_data": ("dataset=prophylaxis", "split=nested"),
}


def targets(node: object) -> list[str]:
    """Every ``_target_`` in a configuration, the outermost first."""
    if isinstance(node, DictConfig):
        here = [node["_target_"]] if "_target_" in node else []
        return here + [
            t for key in node if not OmegaConf.is_missing(node, key) for t in targets(node._get_node(key))
        ]
    if isinstance(node, ListConfig):
        return [t for number in range(len(node)) for t in targets(node._get_node(number))]
    return []


def chosen(name: str) -> DictConfig:
    """A choice's own options, with those that its group shares."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        options = compose(name)[name.split("/")[0]]
    assert isinstance(options, DictConfig)
    return options


def test_there_are_leaves() -> None:
    groups = {leaf.parts[0] for leaf in LEAVES}
    assert groups == {"dataset", "error", "network", "objective", "optimizer", "pk", "split"}
    assert {leaf.name for leaf in LEAVES if leaf.parts[0] == "objective"} >= {"mse", "fo", "foce", "vi"}


@pytest.mark.parametrize("name", NAMES)
def test_a_leaf_has_one_target_that_exists(name: str) -> None:
    leaf = chosen(name)
    found = [target for target in targets(leaf) if target != "hydra.utils.get_method"]
    if name.startswith("dataset/"):
        assert found == []
        return
    assert len(found) == 1
    assert leaf["_target_"] == found[0]
    assert callable(get_object(found[0]))
    if "rate" in leaf:
        assert callable(get_object(leaf["rate"]["path"]))


@pytest.mark.parametrize("name", NAMES)
def test_a_leaf_works_with_the_defaults(data: Path, tmp_path: Path, name: str) -> None:
    path = {
        "dataset/table": data / "simulation.csv",
        "dataset/events": data / "simulation.csv",
        "network/real_data": None,
    }.get(name, data)
    if name == "split/column":
        path = tmp_path / "sets.csv"
        frame = pd.read_csv(data / "simulation.csv")
        frame.assign(set=1 + frame["id"].str.len() % 2).to_csv(path, index=False)
    path = None if name in ("dataset/prophylaxis", "dataset/perioperative") else path
    choice = name.replace("/", "=")
    job = Job.build(configuration(path, tmp_path, choice, "epochs=1", *PARTNERS.get(name, ())))
    trained = job.train([(1, 1), (1, 2)])
    assert trained.failures == (None, None)
    assert trained.epochs == (0,)
    assert bool(trained.objective.isfinite().all())


def test_the_two_ways_of_solving_are_both_there(data: Path, tmp_path: Path) -> None:
    made = {
        name: Job.build(configuration(data, tmp_path, f"pk={name}")).problem.model.pk
        for name in ("two_compartment", "two_compartment_ode")
    }
    assert isinstance(made["two_compartment"], LinearModel)
    assert isinstance(made["two_compartment_ode"], OdeModel)
    assert {tuple(pk.parameters) for pk in made.values()} == {("CL", "V1", "Q", "V2")}


# -- the protocol ----------------------------------------------------------------------------------


def test_defaults_are_those_of_the_simulation_study() -> None:
    config = composed()
    assert config.epochs == 2000
    assert config.checkpoint_every == 25
    assert list(config.random_effects) == ["CL", "V1"]
    assert config.objective.samples == 3
    assert config.objective.estimator == "path_derivative"
    assert config.error.components == ["additive"]
    assert composed("split=bootstrap").split.size == 60
    assert composed("split=nested").split.inner_folds == 10
    assert config.omega == "full"
    assert composed("objective=foce").objective.formulation == "joint"
    rates = {name: composed(f"objective={name}").learning_rate for name in ("mse", "fo", "foce", "vi")}
    assert rates == {"mse": 0.1, "fo": 0.1, "foce": 0.01, "vi": 0.1}


def test_every_option_is_written_in_one_place() -> None:
    """What a fit and a posterior have in common is in problem.yaml, and what is checked is what is there."""
    problem, job, posterior = (
        set(OmegaConf.load(ROOT / "conf" / f"{name}.yaml")) - {"defaults", "hydra"}
        for name in ("problem", "config", "posterior")
    )
    assert not problem & job
    assert problem & posterior == {"study", "dtype"}  # with other defaults
    groups = {"dataset", "split", "network", "pk", "error"}
    assert problem | groups == set(PROBLEM)
    assert problem | groups | job | {"objective", "optimizer"} == set(JOB) == set(composed())


def test_what_choices_share_is_written_once() -> None:
    for part, group in (("_doses", "pk"), ("_table", "dataset")):
        shared = OmegaConf.load(ROOT / "conf" / f"{part}.yaml")
        assert isinstance(shared, DictConfig)
        for name in (name for name in NAMES if name.startswith(f"{group}/")):
            own = OmegaConf.load(ROOT / "conf" / f"{name}.yaml")
            assert isinstance(own, DictConfig)
            assert {key for key in own if key in shared and own[key] == shared[key]} == set(), name
            if "DirectModel" not in str(own.get("_target_")):  # which has no doses that arrive
                assert set(shared) <= set(chosen(name)), name


def test_readers_default_to_what_a_configuration_does() -> None:
    """A table that is read without a configuration is read as with the one by default."""
    options, plain = chosen("dataset/table"), Format()
    for option in ("columns", "keep", "bolus_duration", "predose_observations", "over_time"):
        assert options[option] == getattr(plain, option), option


def test_the_optimizer_follows_the_learning_rate() -> None:
    for name in ("foce", "vi"):
        config = composed(f"objective={name}")
        assert config.optimizer.lr == config.learning_rate == config.objective.learning_rate


@pytest.mark.parametrize(
    ("dataset", "size", "column", "reference"),
    [
        ("simulated", "weight", "wt", 70),
        ("table", "weight", "wt", 70),
        ("prophylaxis", "ffm", "ffm", 60),
        ("perioperative", "ffm", "ffm", 60),
    ],
)
def test_covariates_of_the_methods(dataset: str, size: str, column: str, reference: float) -> None:
    config = chosen(f"dataset/{dataset}")
    of_size, vwf = config.covariates[size], config.covariates.vwf
    assert (of_size.column, of_size.scale, of_size.reference) == (column, 150, reference)
    assert (vwf.column, vwf.scale, vwf.reference) == ("vwf", 350, 100)
    of_factor = {"time": "h", "amount": "IU", "level": "IU/mL"}
    nothing_said = {"time": "h", "amount": None, "level": None}
    assert dict(config.units) == (nothing_said if dataset == "table" else of_factor)


def test_networks_of_the_methods(data: Path, tmp_path: Path) -> None:
    branching = Job.build(configuration(data, tmp_path)).problem.model.network
    assert isinstance(branching, CovariateNetwork)
    assert [(b.inputs, b.hidden, b.heads) for b in branching.branches] == [
        (("weight",), (12,), ("CL", "V1")),
        (("vwf",), (12,), ("CL",)),
    ]
    assert branching.global_parameters == ("Q", "V2")
    assert branching.scales == {"weight": 150, "vwf": 350}
    full = Job.build(configuration(data, tmp_path, "network=fully_connected")).problem.model.network
    assert isinstance(full, CovariateNetwork)
    (branch,) = full.branches
    assert (branch.hidden, branch.activation, set(branch.inputs)) == ((8, 8), "swish", {"weight", "vwf"})
    assert full.global_parameters == ("Q", "V2")


def test_truth_is_that_of_the_simulator() -> None:
    truth = OmegaConf.to_container(chosen("dataset/simulated").truth)
    assert isinstance(truth, dict)
    assert truth["omega"] == [list(row) for row in Truth().omega] == [[0.037, 0.0113], [0.0113, 0.017]]
    assert truth["sigma"] == {"additive": Truth().sigma} == {"additive": 0.03}
    assert (Truth().q, Truth().v2) == (0.15, 0.75)
    assert Settings() == Settings(n=500, seed=0, folds=20, fold_size=60)
    assert SAMPLE_TIMES == ((4, 1.5), (24, 4), (48, 4))


# -- packaging -------------------------------------------------------------------------------------


def test_the_wheel_carries_the_configuration() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {
        "conf": "medcm_cli/conf"
    }
    assert project["project"]["scripts"] == {"medcm": "medcm_cli.cli:main"}
    assert not (ROOT / "medcm_cli" / "conf").exists()


def asked() -> dict[NormalizedName, Requirement]:
    """Every direct dependency, those of the extras too."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    texts = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    requirements = {canonicalize_name(r.name): r for r in map(Requirement, texts)}
    del requirements[canonicalize_name("medcm")]  # an extra that names another
    return requirements


def test_every_direct_dependency_is_pinned_to_a_version_that_is_allowed() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = map(Requirement, (line for line in lines if not line.startswith("#")))
    pins = {canonicalize_name(r.name): r for r in pinned}
    assert set(pins) == set(asked())
    for name, requirement in asked().items():
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), name
        assert [bound.operator for bound in requirement.specifier].count(">=") == 1, name


def test_the_checks_run_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = (line.strip() for line in readme.splitlines() if line.endswith("-m pytest"))
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command in [line.strip() for line in checks.splitlines()]


def test_where_the_configuration_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert conf_dir() == ROOT / "conf"
    installed = tmp_path / "site-packages" / "medcm_cli"
    (installed / "conf").mkdir(parents=True)
    (installed / "conf" / "config.yaml").touch()
    monkeypatch.setattr(options, "__file__", str(installed / "study" / "options.py"))
    assert conf_dir() == installed / "conf"
    # A folder named conf beside an installation is somebody else's.
    (installed.parent / "conf").mkdir()
    assert conf_dir() == installed / "conf"
