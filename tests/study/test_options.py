"""Options: the values of an axis, and what is refused before anything is trained."""

from pathlib import Path

import pytest

from medcm_cli.errors import InputError
from medcm_cli.study.axes import axis
from medcm_cli.study.job import Job
from tests.helpers import configuration

# -- axes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        (3, [3]),
        ("3", [3]),
        ([2, 1], [2, 1]),
        ((1, 2), [1, 2]),
        ("[1,2]", [1, 2]),
        ("1,2,5", [1, 2, 5]),
        ("range(1,4)", [1, 2, 3]),
        ("range(1,8,3)", [1, 4, 7]),
        ("choice(4,2)", [4, 2]),
        (["1", "2"], [1, 2]),
    ],
)
def test_axis(value: object, numbers: list[int]) -> None:
    assert axis("fold", value) == numbers


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 1.0, 1.5, True, None, [], "", "one", "0", "-2", "1.5", "01", "[]", "[0,1]", "[[1],[2]]"),
        *(
            "range(1,",
            "range(3,1)",
            "range(0,2)",
            "interval(1,3)",
            "1,1",
            [1, 1],
            "[2,2]",
            {"a": 1},
            "{a: 1}",
        ),
    ],
)
def test_axis_that_makes_no_sense(value: object) -> None:
    with pytest.raises(InputError, match="fold") as caught:
        axis("fold", value)
    assert "\n" not in str(caught.value)


# -- what is refused -------------------------------------------------------------------------------

REFUSED = [
    ("dtype=float16", "dtype"),
    ("epochs=0", "epochs"),
    ("epochs=-5", "epochs"),
    ("epochs=1.5", "epochs"),
    ("epochs=many", "epochs"),
    ("epochs=null", "epochs"),
    ("epochs=true", "epochs"),
    ("checkpoint_every=0", "checkpoint_every"),
    ("checkpoint_every=2.5", "checkpoint_every"),
    ("learning_rate=0", "learning_rate"),
    ("learning_rate=-0.1", "learning_rate"),
    ("learning_rate=nan", "learning_rate"),
    ("learning_rate=fast", "learning_rate"),
    ("learning_rate=true", "learning_rate"),
    ("learning_rate=null", "learning_rate"),
    ("seed=-1", "seed"),
    ("seed=abc", "seed"),
    ("seed=1.5", "seed"),
    ("random_effects=[]", "random_effects"),
    ("random_effects=[CL,CL]", "random_effects"),
    ("random_effects=[KA]", "random_effects"),
    ("random_effects=CL", "random_effects"),
    ("pk=one_compartment", "pk"),
    ("network=none network.global_parameters=[CL,V1,Q]", "network"),
    ("network.global_parameters=[Q,V2,CL]", "network"),
    ("network.branches=[{inputs:[height],hidden:[2],heads:[CL,V1]}]", "height"),
    ("network.branches=[{inputs:[weight],hidden:[2],heads:[CL,V1],depth:2}]", "depth"),
    ("network.branches=[{inputs:[weight],hidden:[2],heads:[CL,V1],activation:tan}]", "activation"),
    ("network.branches=[{inputs:[weight],hidden:[],heads:[CL,V1]}]", "hidden"),
    ("objective.samples=0", "samples"),
    ("objective.samples=1.5", "samples"),
    ("objective.samples=few", "objective"),
    ("objective.estimator=best", "estimator"),
    ("objective.family=gamma", "family"),
    ("objective=foce objective.formulation=other", "formulation"),
    ("objective._target_=medcm_cli.objectives.Nothing", "objective"),
    ("optimizer._target_=torch.optim.Nothing", "optimizer"),
    ("optimizer.lr=-1", "optimizer"),
    ("optimizer.lr=text", "optimizer"),
    ("pk=two_compartment_ode pk.method=nonsense", "pk.method"),
    ("pk=two_compartment_ode pk.method=scipy_solver", "pk.method"),
    ("pk=two_compartment_ode pk.rtol=0", "pk.rtol"),
    ("pk=two_compartment_ode pk.atol=text", "pk.atol"),
    ("error.components=[]", "error"),
    ("error.components=[exponential]", "error"),
    ("fixed=nothing", "fixed"),
    ("fixed={}", "fixed"),
    ("fixed={rho:1}", "fixed"),
    ("fixed={sigma:0.1}", "fixed.sigma"),
    ("fixed={omega:[[1,2],[2,1]]}", "fixed.omega"),
    ("fixed=truth dataset.truth=null", "fixed=truth"),
    ("fixed=truth random_effects=[V1,CL]", "random_effects"),
    ("fixed=truth network=truth objective=fo", "nothing to train"),
    ("network=truth dataset.covariates.vwf.unit=fraction", "vwf in IU/dL"),
    ("fold=4", "train_set_4.csv"),
    ("fold=0", "fold"),
    ("replicate=0", "replicate"),
    ("split=all fold=2", "fold"),
    ("split=bootstrap split.size=0", "size"),
    ("split=bootstrap split.size=-3", "split"),
    ("dataset.path=absent", "absent"),
    ("dataset.predose_observations=maybe", "predose_observations"),
    ("dataset.covariates.weight.column=mass", "mass"),
    ("dataset.covariates.weight.scale=heavy", "heavy"),
    ("dataset.level_scale=dL", "level_scale"),
    ("dataset.truth.omega=3", "omega"),
    ("study=a/b", "study"),
    ("variant=.x", "variant"),
    ("dataset.name=a/b", "dataset.name"),
    ("overwrite=no", "overwrite"),
    ("overwrite=1", "overwrite"),
    ("study=null", "study"),
    ("outputs=null", "outputs"),
    ("batch=null", "batch"),
    ("learning_rate=inf", "learning_rate"),
    ("pk.amount_per_level=0", "amount_per_level"),
    ("pk.amount_per_level=abc", "amount_per_level"),
    ("random_effects=null", "random_effects"),
    ("random_effects=[1]", "random_effects"),
    ("network.branches=null", "network.branches"),
    ("network.branches=[1]", "network.branches"),
    ("network.branches=[{inputs:[weight],hidden:[true],heads:[CL,V1]}]", "hidden"),
    ("network.branches=[{inputs:[weight,weight],hidden:[2],heads:[CL,V1]}]", "inputs"),
    ("network.global_parameters=[Q,V2,V2]", "global_parameters"),
    ("error.components=[additive,additive]", "error"),
    ("objective.samples=true", "samples"),
    ("objective=foce objective.mode_iterations=0", "mode_iterations"),
    ("objective=foce objective.mode_tolerance=abc", "mode_tolerance"),
    ("split=bootstrap split.size=2.5", "split.size"),
    ("split=bootstrap split.size=abc", "split.size"),
    ("split.train=3", "split.train"),
    ("dataset.covariates=null", "dataset.covariates"),
    ("dataset.covariates.weight=abc", "dataset.covariates.weight"),
    ("dataset.covariates.weight.reference=abc", "dataset.covariates.weight.reference"),
    ("dataset.truth.sigma=3", "dataset.truth.sigma"),
    ("dataset.truth.sigma.additive=-1", "dataset.truth.sigma"),
    ("outer=1", "outer=1: this split has fold"),
    ("inner=[1,2]", "inner"),
    ("split=bootstrap outer=1", "outer=1: this split has fold"),
    ("split=nested fold=2", "fold=2: split=nested has outer and inner"),
    ("split=nested fold=[1,2]", "fold"),
    ("split=nested inner=11", "inner=11"),
    ("split=nested outer=0", "outer=0"),
    ("split=nested outer=one", "outer=one"),
    ("split=nested split.inner_folds=31", "split.inner_folds"),
    ("split=nested split.inner_folds=1", "split.inner_folds"),
    ("split=nested split.inner_folds=few", "split.inner_folds"),
    ("omega=block", "omega"),
    ("omega=null", "omega"),
    ("redraws=-1", "redraws"),
    ("redraws=null", "redraws"),
    ("tail=-1", "tail"),
    ("tail=last", "tail"),
    ("dataset.batch_subjects=0", "dataset.batch_subjects"),
    ("dataset.batch_subjects=half", "dataset.batch_subjects"),
    ("dataset.columns=DV", "dataset.columns"),
    ("dataset.columns={dv:LEVEL}", "LEVEL"),
    ("dataset.columns={depth:x}", "depth"),
    ("dataset.keep=null", "dataset.keep"),
    ("dataset.keep={id:[nobody]}", "nobody"),
    ("dataset.bolus_duration=-1", "dataset.bolus_duration"),
    ("dataset.bolus_duration=short", "dataset.bolus_duration"),
    ("dataset.over_time=mean", "dataset.over_time"),
    ("dataset.over_time={weight:last}", "dataset.over_time.weight"),
    ("dataset.cohort=surgery dataset.path=null", "surgery"),
    ("dataset.preparation=full", "dataset.preparation"),
    ("dataset.preparation={columns:{}}", "dataset.preparation.columns"),
    (f"study={'s' * 300}", "study"),
    (f"variant={'v' * 300}", "variant"),
]


@pytest.mark.parametrize(("options", "word"), REFUSED, ids=[options for options, _ in REFUSED])
def test_bad_option_is_refused_before_training(data: Path, tmp_path: Path, options: str, word: str) -> None:
    given = options.split(" ")
    config = configuration(None if "dataset.path" in options else data, tmp_path, *given)
    with pytest.raises(InputError) as caught:
        Job.build(config).plan()
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
