"""Training makes its tensors where the model is: where the default device is one that holds no numbers,
whatever is made without a device is found out."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medcm_cli.model import Model
from medcm_cli.objectives import Mse
from medcm_cli.study.job import Job
from medcm_cli.study.options import conf_dir
from medcm_cli.training.course import Course
from medcm_cli.training.loop import train
from medcm_cli.training.trained import Trained
from tests.helpers import STREAMS, configuration, make_population, needs_of_models

META, CPU = torch.device("meta"), torch.device("cpu")
ADAM = functools.partial(torch.optim.Adam, lr=0.1, fused=True)
PLAUSIBLE = {"CL": 0.5, "V1": 3.0, "Q": 0.2, "V2": 1.0}
GLOBAL = "network.global_parameters"
CASES: dict[str, tuple[str, ...]] = {
    "mse": ("objective=mse", "network=fully_connected"),
    "equations": (
        *("objective=vi", "network=equations", "error=student_t", "given={CL: K * V1}", "omega=[[K,V1]]"),
        *("random_effects=[K,V1,Q]", "dataset.truth=null"),
        "network.equations={K: {typical: 0.1, weight: {power: {initial: -0.25}}}, V1: {typical: 2, "
        "vwf: {network: [4]}}, Q: {typical: {fixed: 0.1}}, V2: {typical: 0.5}}",
    ),
    "variances": ("objective=foce", "error=combined_variances"),
    "power": ("objective=fo", "error=power"),
    "log-normal": ("objective=foce", "error=log_normal", "network=fully_connected"),
    "fo": ("objective=fo", "error=combined"),
    "endpoints": ("objective=mse", "error=endpoints", "endpoints={level: {error: combined, size: 2}}"),
    "foce": ("objective=foce", "error=additive", "network=multi_branch", "pk=two_compartment"),
    "foce, implicit": ("objective=foce", "objective.mode_gradient=implicit", "error=proportional"),
    "foce, linearised": ("objective=foce", "objective.formulation=linearised", "network=truth"),
    "foce, nonmem": ("objective=foce", "objective.formulation=nonmem", "error=combined"),
    "focei": ("objective=focei", "error=combined"),
    "laplace": ("objective=laplace", "error=proportional", "network=fully_connected"),
    "agq": ("objective=agq", "objective.nodes=3", "error=combined_variances"),
    "foce, minibatches": ("objective=foce", "dataset.batch_subjects=3"),
    "vi": ("objective=vi", "error=combined", "omega=diagonal"),
    "vi, known": ("objective=vi", "fixed=truth"),
    "vi, mixture": ("objective=vi", "objective.family=mixture"),
    "vi, flow": ("objective=vi", "objective.family=flow"),
    "vi, population": ("objective=vi", "objective.population=variational"),
    "fo, occasions": ("objective=fo", "occasions={parameters: [CL,V1], structure: full, gap: 20}"),
    "foce, occasions": (
        *("objective=foce", "objective.mode_gradient=implicit", "occasions={parameters: [CL], times: [20]}"),
    ),
    "vi, occasions": (
        *("objective=vi", "objective.family=by_occasion", "objective.estimator=standard"),
        "occasions={parameters: [CL], times: [20, 40]}",
    ),
    "vi, population and occasions": (
        *("objective=vi", "objective.population=variational", "occasions={parameters: [CL], times: [20]}"),
    ),
    "vi, entropy": ("objective=vi", "objective.estimator=entropy", "objective.family=mean_field"),
    "iw": ("objective=iw", "error=combined"),
    "saem": ("objective=saem", "error=combined", "objective.exploration=1"),
    "saem, equations": (
        *("objective=saem", "training.protocol=field", "network=equations", "random_effects=[CL,V1]"),
        *("dataset.truth=null", "occasions={parameters: [CL], times: [20]}"),
        "network.equations={CL: {typical: 0.1, weight: {power: {initial: 0.5}}}, V1: {typical: 2}, "
        "Q: {typical: 0.1}, V2: {typical: {fixed: 0.5}}}",
    ),
    "saem, minibatches": ("objective=saem", "dataset.batch_subjects=3"),
    "vi, minibatches": ("objective=vi", "dataset.batch_subjects=3"),
    "distributions": (
        *("objective=foce", "network=none", "random_effects=[CL,V1,Q]", "dataset.truth=null"),
        *("network.initial={Q: 0.2}", "objective.mode_gradient=implicit"),
        "distributions={CL: {boxcox: {initial: 0.3}}, V1: additive, Q: {logit: [0.1, 0.9]}}",
    ),
    "sigma": ("objective=foce", "random_effects=[CL,sigma]", "error=combined", "dataset.truth=null"),
    "priors": (
        *("objective=focei", "error=combined", "dataset.truth=null", "dataset.batch_subjects=3"),
        "priors={CL: {log_normal: [0.2, 0.3]}, rho: {lkj: 2}, sigma_additive: {half_normal: 0.3}}",
    ),
    "distributions, vi": (
        *("objective=vi", "network=none", "random_effects=[CL,V1]", "dataset.truth=null"),
        *("network.initial={V1: 2}", "distributions={CL: {boxcox: 0.3}, V1: additive}"),
    ),
    "field": ("objective=vi", "training.protocol=field", "error=combined"),
    "field, minibatches": ("objective=vi", "training.protocol=field", "dataset.batch_subjects=3"),
    "field, polished": (
        *("objective=fo", "training.protocol=field", "training.start=drawn", "network=none"),
        "initial={CL: {initial: 0.2, upper: 2}, omega_CL: {fixed: 0.3}, rho_CL_V1: {initial: 0.1, lower: 0}}",
    ),
    "field, network": ("objective=foce", "training.protocol=field", "error=proportional"),
    "one": ("objective=foce", "pk=one_compartment", "[CL,V1]"),
    "one, oral": ("objective=vi", "pk=one_compartment_oral", "[CL,V1,KA]"),
    "two, oral": ("objective=fo", "pk=two_compartment_oral", "[CL,V1,Q,V2,KA]"),
    "three": ("objective=vi", "pk=three_compartment", "[CL,V1,Q,V2,Q3,V3]"),
    "three, oral": ("objective=foce", "pk=three_compartment_oral", "[CL,V1,Q,V2,Q3,V3,KA]"),
    "saturable": ("objective=fo", "pk=michaelis_menten", "[VM,KM,V1]", "random_effects=[VM,V1]"),
    "saturable, oral": (
        "objective=fo",
        "pk=michaelis_menten_oral",
        "[VM,KM,V1,KA]",
        "random_effects=[VM,KA]",
    ),
}
SLOW: dict[str, tuple[str, ...]] = {
    "ode": ("objective=vi", "pk=two_compartment_ode", "[CL,V1,Q,V2]"),
    "adjoint": ("objective=vi", "pk=two_compartment_ode", "pk.adjoint=true", "[CL,V1,Q,V2]"),
    "learned": (
        *("objective=mse", "pk=neural_ode"),
        "[CL,V1]",
    ),
}
# The other models of conf/pk, of which some are quick.
AT_ONCE = ("dataset.columns.rate=null", "dataset.columns.duration=null", "dataset.bolus_duration=0")
REST = {
    name: ("objective=vi", f"pk={name}", *needs, *(AT_ONCE if name == "absorption_transit" else ()))
    for name, needs in needs_of_models().items()
    if not any(f"pk={name}" in case for case in (*CASES.values(), *SLOW.values()))
}
DIRECT = {
    "linear": "E0,SLOPE",
    "emax": "E0,EMAX,ED50",
    "hill": "E0,EMAX,ED50,GAMMA",
}  # of times, not of doses
REST |= {
    f"dose_response_{form}": (
        *("objective=fo", f"pk=dose_response_{form}", "pk.column=time", "network=none", f"[{names}]"),
        *("random_effects=[E0]", "dataset.truth=null"),
    )
    for form, names in DIRECT.items()
}
QUICK = (
    "dose_response_emax",
    "absorption_parallel",
    "absorption_transit",
    "response_inhibited_formation",
    "effect_emax",
)
CASES |= {name: REST.pop(name) for name in QUICK}
SLOW |= REST
# Everything that a regimen can have, on few rows: additional doses, a steady state, a reset, an infusion, a
# limit of quantification, a covariate that changes.
TABLE = """id,time,evid,amt,rate,ii,ss,addl,dv,cens,wt,vwf
a,0,1,2000,0,12,1,1,,,70,100
a,5,0,,,,,,0.9,0,70,110
a,30,0,,,,,,0.05,1,72,120
a,31,0,,,,,,0.05,-1,72,120
b,0,1,1500,3000,0,0,0,,,60,90
b,2,0,,,,,,0.7,0,60,90
b,24,4,1500,0,0,0,0,,,60,95
b,28,0,,,,,,0.6,0,62,95
c,0,1,1000,0,8,0,3,,,80,150
c,30,0,,,,,,0.4,0,80,150
"""
OF_TABLE: dict[str, tuple[str, ...]] = {
    "closed form": ("objective=vi",),
    "above 0": ("objective=foce", "error=combined", "dataset.blq=M4"),
    "lag": (
        "objective=foce",
        "pk=one_compartment_oral",
        "[CL,V1,KA,LAG,F]",
        "pk.lag={1: LAG}",
        "pk.bioavailability={1: F}",
    ),
    "occasions": ("objective=foce", "network=fully_connected", "occasions={parameters: [CL, V1], gap: 8}"),
    "occasions, oral": (
        *("objective=foce", "pk=one_compartment_oral", "[CL,V1,KA,LAG,F]", "pk.lag={1: LAG}"),
        *("pk.bioavailability={1: F}", "occasions={parameters: [F, LAG], times: [20]}"),
    ),
    "stepwise": (
        "objective=vi",
        "network=fully_connected",
        "dataset.over_time={weight: record, vwf: record}",
    ),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "events.csv"
    path.write_text(TABLE)
    return path


INTEGRATED = ("_ode", "michaelis", "pk=response", "pk=tumour", "pk=binding")


def built(data: Path, choices: tuple[str, ...], outputs: Path, *more: str) -> Job:
    options = [option if "=" in option.split("[")[0] else f"{GLOBAL}={option}" for option in choices]
    names = [option.partition("=")[0] for option in options]
    if "pk" in names and "network" not in names:
        options += ["network=none"]
    if any(name in option for option in options for name in INTEGRATED):
        options += ["epochs=1"]
        options += [] if "dtype" in names else ["pk.rtol=0.01", "pk.atol=1"]
    return Job.build(configuration(data, outputs, *options, *more, "replicate=[1,2]"))


def trained(job: Job, device: torch.device) -> Trained:
    """Where ``device`` is what tensors are made on by default. Of the draws of an end, which are all made in
    one place, a few."""
    with device, pytest.MonkeyPatch.context() as patched:
        patched.setattr("medcm_cli.training.loss.DRAWS", 3)
        return job.train([(1, 1), (1, 2)])


def same(a: Trained, b: Trained) -> None:
    assert a.failures == b.failures
    for name in ("checkpoints", "objective", "unconverged", "redraws"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.device == other.device == CPU
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), name
    for name, value in {**a.state.trained, **a.state.carried}.items():
        assert value.device == CPU
        assert torch.equal(value, {**b.state.trained, **b.state.carried}[name])


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_tensor_is_made_where_the_model_is(
    name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = built(data, {**CASES, **SLOW}[name], tmp_path)
    if name == "field, network":  # whose search takes long; that of "field, polished" goes to its end
        monkeypatch.setattr("medcm_cli.training.newton.STEPS", 5)
    same(trained(job, META), trained(job, CPU))


@pytest.mark.slow  # the search takes long
def test_so_are_those_of_a_steady_state_that_is_searched_for(table: Path, tmp_path: Path) -> None:
    choices = ("objective=mse", "pk=two_compartment_ode", "[CL,V1,Q,V2]", "dataset=table", "split=all")
    rule = ("dataset.truth=null", "dataset.over_time={weight: first, vwf: first}", "dtype=float64")
    job = built(table, (*choices, *rule), tmp_path)
    model, everyone = job.problem.model, job.problem.everyone
    zeta = {name: torch.tensor([value], dtype=torch.float64) for name, value in PLAUSIBLE.items()}
    found = []
    for device in (META, CPU):
        with device, torch.no_grad():
            found.append(model.predict(zeta, everyone))
    assert torch.equal(*found)
    assert bool((found[0] > 0).all())


@pytest.mark.parametrize("name", OF_TABLE)
def test_so_are_those_of_any_regimen(name: str, table: Path, tmp_path: Path) -> None:
    given = "dataset=table", "split=all", "dataset.truth=null", "training.protocol=paper"
    rule = () if name == "stepwise" else ("dataset.over_time={weight: first, vwf: first}",)
    job = built(table, OF_TABLE[name], tmp_path, *given, *rule)
    same(trained(job, META), trained(job, CPU))


def test_the_cases_have_every_model_objective_and_error_of_conf() -> None:
    chosen = {option for case in (*CASES.values(), *SLOW.values(), *OF_TABLE.values()) for option in case}
    chosen |= {"network=none"}  # of all that have global parameters of their own
    # Of covariates that are prepared, another network of the same class.
    every = {
        f"{path.parent.name}={path.stem}"
        for group in ("network", "objective", "pk", "error")
        for path in conf_dir().glob(f"{group}/[!_]*.yaml")
    }
    assert every - chosen == {"network=real_data"}


def test_a_forgotten_device_is_found_out(model: Model) -> None:
    population = make_population(3, 2)

    class Forgetful(Mse):
        def loss(self, *given: Any) -> Tensor:
            return super().loss(*given) + torch.zeros(2, dtype=torch.float64)

    with META, pytest.raises(RuntimeError):
        train(model, Forgetful(), population, STREAMS, ADAM, Course(2, 1), torch.float64)
