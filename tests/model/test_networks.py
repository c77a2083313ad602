"""Networks against a plain numpy version, one fit and one subject at a time, and their derivatives."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from medcm_cli.errors import InputError
from medcm_cli.model import CovariateNetwork
from medcm_cli.numerics.streams import Stream
from tests.helpers import COVARIATES, MULTI_BRANCH

F64 = torch.float64
STREAMS = [Stream(1, fold, 1) for fold in (1, 2, 3)]
CONNECTED = [{"inputs": ["weight", "vwf"], "hidden": [8, 8], "heads": ["CL", "V1"], "activation": "swish"}]
THREE: dict[str, dict[str, Any]] = {**COVARIATES, "age": {"scale": 85}}
DEEP = [
    {"inputs": ["vwf", "age"], "hidden": [3, 2, 4], "heads": ["V1", "CL", "Q"], "activation": "swish"},
    {"inputs": ["weight"], "hidden": [2], "heads": ["CL"]},
    {"inputs": ["age"], "hidden": [2], "heads": ["CL", "V1"], "activation": "smooth_relu"},
]
NETWORKS: dict[str, tuple[Sequence[Mapping[str, object]], list[str]]] = {
    "multi-branch": (MULTI_BRANCH, ["Q", "V2"]),
    "fully connected": (CONNECTED, ["Q", "V2"]),
    "three branches": (DEEP, ["V2"]),
    "no covariates": ([], ["CL", "V1", "Q", "V2"]),
}


def built(name: str) -> CovariateNetwork:
    branches, global_parameters = NETWORKS[name]
    return CovariateNetwork.build(branches, global_parameters, THREE)


def covariates(subjects: int, fits: int, seed: int = 0) -> dict[str, Tensor]:
    generator = np.random.default_rng(seed)
    ranges = {"weight": (5, 150), "vwf": (30, 350), "age": (1, 85)}
    return {
        name: torch.tensor(generator.uniform(low, high, (1, subjects, fits)))
        for name, (low, high) in ranges.items()
    }


def trained(network: CovariateNetwork, streams: Sequence[Stream] = STREAMS) -> dict[str, Tensor]:
    """Values away from their start, so that no bias is 0 or 1."""
    generator = torch.Generator().manual_seed(4)
    values = network.init(streams, F64)
    return {
        name: value + 0.5 * torch.randn(value.shape, generator=generator, dtype=F64)
        for name, value in values.items()
    }


# -- values ----------------------------------------------------------------------------------------


def softplus(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0, x))


def by_hand(
    branches: Sequence[Mapping[str, Any]],
    global_parameters: Sequence[str],
    values: Mapping[str, np.ndarray],
    subject: Mapping[str, float],
) -> dict[str, float]:
    """zeta of one subject from one fit's values (docs/methods.md, "Network"): weights (out, in), biases
    (out)."""
    zeta = dict.fromkeys((head for branch in branches for head in branch["heads"]), 1.0)
    for branch in branches:
        prefix = "+".join(branch["inputs"])
        x = np.array([subject[name] / THREE[name]["scale"] for name in branch["inputs"]])
        for depth in range(1, len(branch["hidden"]) + 1):
            layer = f"{prefix}.hidden_{depth}"
            x = values[f"{layer}.weight"] @ x + values[f"{layer}.bias"]
            if branch.get("activation", "smooth_relu") == "smooth_relu":
                x = softplus(10 * x) / 10
            else:
                x = x / (1 + np.exp(-x))
        effects = softplus(values[f"{prefix}.heads.weight"] @ x + values[f"{prefix}.heads.bias"])
        for head, effect in zip(branch["heads"], effects, strict=True):
            zeta[head] *= float(effect)
    for name in global_parameters:
        zeta[name] = float(softplus(values[f"global.{name}"]))
    return zeta


@pytest.mark.parametrize("name", NETWORKS)
def test_typical_parameters_equal_plain_numpy(name: str) -> None:
    branches, global_parameters = NETWORKS[name]
    network = built(name)
    values, given = trained(network), covariates(5, 3)
    zeta = network.typical(values, given)
    assert set(zeta) == set(network.parameters) == {"CL", "V1", "Q", "V2"}
    for fit in range(3):
        of_fit = {key: value[..., fit].numpy() for key, value in values.items()}
        for n in range(5):
            subject = {key: float(value[0, n, fit]) for key, value in given.items()}
            expected = by_hand(branches, global_parameters, of_fit, subject)
            for parameter, got in zeta.items():
                assert got.shape == ((3,) if parameter in global_parameters else (1, 5, 3))
                one = got[fit] if parameter in global_parameters else got[0, n, fit]
                assert float(one) == pytest.approx(expected[parameter], rel=1e-12), parameter


def test_clearance_is_the_product_of_its_branches() -> None:
    """log CL is a sum of one function of weight and one of VWF: its mixed differences are zero."""
    network = built("multi-branch")
    values = trained(network)
    weight, vwf = torch.tensor([20.0, 90.0], dtype=F64), torch.tensor([60.0, 220.0], dtype=F64)
    grid = {"weight": weight.repeat(2), "vwf": vwf.repeat_interleave(2)}
    zeta = network.typical(values, {name: v.view(1, 4, 1).expand(1, 4, 3) for name, v in grid.items()})
    log_cl, v1 = zeta["CL"].log()[0], zeta["V1"][0]
    mixed = log_cl[0] - log_cl[1] - log_cl[2] + log_cl[3]
    torch.testing.assert_close(mixed, torch.zeros(3, dtype=F64), rtol=0, atol=1e-13)
    assert ((log_cl[0] - log_cl[1]).abs() > 1e-3).all()
    assert ((log_cl[0] - log_cl[2]).abs() > 1e-3).all()
    assert torch.equal(v1[:2], v1[2:])  # V1 has no VWF


@pytest.mark.parametrize("x", [-400.0, -3.0, 0.0, 0.01, 3.0, 3.9, 4.1, 400.0])
def test_smooth_relu_is_exact_far_from_zero(x: float) -> None:
    """One hidden unit seen through a head: softplus(10 x) / 10 at any x, without overflow."""
    branch = {"inputs": ["age"], "hidden": [1], "heads": ["CL"]}
    network = CovariateNetwork.build([branch], [], THREE)
    values = {
        "age.hidden_1.weight": torch.tensor([[[x * 85]]], dtype=F64),
        "age.hidden_1.bias": torch.zeros(1, 1, dtype=F64),
        "age.heads.weight": torch.ones(1, 1, 1, dtype=F64),
        "age.heads.bias": torch.zeros(1, 1, dtype=F64),
    }
    zeta = network.typical(values, {"age": torch.ones(1, 1, 1, dtype=F64)})
    hidden = np.logaddexp(0, 10 * x) / 10
    assert float(zeta["CL"]) == pytest.approx(np.logaddexp(0, hidden), rel=1e-14)


@pytest.mark.parametrize("name", ["multi-branch", "fully connected"])
def test_fits_of_a_batch_do_not_influence_each_other(name: str) -> None:
    network = built(name)
    values, given = trained(network), covariates(6, 3)
    zeta = network.typical(values, given)
    for fit in range(3):
        alone = network.typical(
            {key: value[..., fit : fit + 1] for key, value in values.items()},
            {key: value[..., fit : fit + 1] for key, value in given.items()},
        )
        for parameter, got in alone.items():
            torch.testing.assert_close(got, zeta[parameter][..., fit : fit + 1], rtol=1e-14, atol=0)
    broken = {key: value.clone() for key, value in values.items()}
    for value in broken.values():
        value[..., 1] = torch.nan
    for parameter, got in network.typical(broken, given).items():
        assert got[..., 1].isnan().all()
        torch.testing.assert_close(got[..., ::2], zeta[parameter][..., ::2], rtol=1e-14, atol=0)


# -- derivatives -----------------------------------------------------------------------------------

SMALL: dict[str, list[Mapping[str, object]]] = {
    "multi-branch": [
        {"inputs": ["weight"], "hidden": [2], "heads": ["CL", "V1"]},
        {"inputs": ["vwf"], "hidden": [2], "heads": ["CL"]},
    ],
    "fully connected": [
        {"inputs": ["weight", "vwf"], "hidden": [2, 3], "heads": ["CL", "V1"], "activation": "swish"}
    ],
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("check", [gradcheck, gradgradcheck], ids=["first", "second"])
def test_derivatives_with_respect_to_every_trained_value(name: str, check: Any) -> None:
    network = CovariateNetwork.build(SMALL[name], ["Q"], THREE)
    values, given = trained(network, STREAMS[:2]), covariates(3, 2)
    names = list(values)
    assert len(names) == len(network.init(STREAMS[:1], F64))

    def zeta(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(network.typical(dict(zip(names, tensors, strict=True)), given).values())

    assert check(zeta, [values[key].requires_grad_() for key in names])


def test_the_gradient_of_a_fit_does_not_reach_another() -> None:
    network = built("multi-branch")
    values = {key: value.requires_grad_() for key, value in trained(network).items()}
    zeta = network.typical(values, covariates(4, 3))
    total = sum((value[..., 1].sum() for value in zeta.values()), torch.zeros((), dtype=F64))
    for gradient in torch.autograd.grad(total, list(values.values())):
        assert gradient[..., 1].any()
        assert not gradient[..., ::2].any()


# -- initial values --------------------------------------------------------------------------------

MANY = [Stream(0, fold, replicate) for fold in range(1, 21) for replicate in range(1, 11)]
# Glorot uniform: sqrt(6 / (fan in + fan out)); every head is a layer of its own with one output.
WEIGHTS = [
    ("multi-branch", "weight.hidden_1.weight", (12, 1), 1, 12),
    ("multi-branch", "weight.heads.weight", (2, 12), 12, 1),
    ("multi-branch", "vwf.hidden_1.weight", (12, 1), 1, 12),
    ("multi-branch", "vwf.heads.weight", (1, 12), 12, 1),
    ("fully connected", "weight+vwf.hidden_1.weight", (8, 2), 2, 8),
    ("fully connected", "weight+vwf.hidden_2.weight", (8, 8), 8, 8),
    ("fully connected", "weight+vwf.heads.weight", (2, 8), 8, 1),
]


@pytest.mark.parametrize(("network", "name", "shape", "fan_in", "fan_out"), WEIGHTS)
def test_weights_start_glorot_uniform(
    network: str, name: str, shape: tuple[int, int], fan_in: int, fan_out: int
) -> None:
    weight = built(network).init(MANY, F64)[name]
    assert weight.shape == (*shape, len(MANY))
    bound = math.sqrt(6 / (fan_in + fan_out))
    assert float(weight.abs().max()) <= bound
    drawn = weight.numpy().ravel()
    assert stats.kstest(drawn, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    assert len(np.unique(drawn)) == weight.numel()


@pytest.mark.parametrize("network", NETWORKS)
def test_biases_and_globals_start_as_published(network: str) -> None:
    values = built(network).init(MANY, F64)
    seen = set()
    for name, value in values.items():
        kind = name.split(".")[0] if name.startswith("global") else name.split(".", 1)[1]
        if name.startswith("global."):
            assert value.shape == (len(MANY),)
            assert float(value.abs().max()) <= math.sqrt(2)
            pvalue = stats.kstest(value.numpy(), stats.uniform(-math.sqrt(2), 2 * math.sqrt(2)).cdf).pvalue
            assert pvalue > 1e-3
        elif kind.endswith("bias"):
            assert (value == (1 if kind == "heads.bias" else 0)).all(), name
        seen.add(kind)
    assert "global" in seen
    assert ("heads.bias" in seen) == (network != "no covariates")


def test_a_fit_starts_from_the_same_values_in_every_batch() -> None:
    network = built("multi-branch")
    together = network.init(MANY[:6], F64)
    alone = network.init([MANY[4]], F64)
    for name, value in alone.items():
        assert torch.equal(together[name][..., 4:5], value)
    for name, value in together.items():
        if not name.endswith("bias"):
            assert not torch.equal(value[..., 0], value[..., 1]), name
    for name, value in network.init([MANY[4]], torch.float32).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, alone[name].float())


# -- configuration ---------------------------------------------------------------------------------


def test_what_a_network_reads_and_gives() -> None:
    network = built("three branches")
    assert network.parameters == ("V1", "CL", "Q", "V2")
    assert network.inputs == ("vwf", "age", "weight")
    assert built("no covariates").inputs == ()


GOOD: dict[str, object] = {"inputs": ["weight"], "hidden": [3], "heads": ["CL"]}
BAD_OPTIONS: dict[str, tuple[dict[str, object], str]] = {
    "unknown covariate": ({"inputs": ["height"]}, r"'height' is not in the dataset, which has weight, vwf"),
    "one unknown covariate of two": ({"inputs": ["weight", "height"]}, "'height'"),
    "unknown activation": ({"activation": "relu"}, r"'relu'; expected one of .*smooth_relu.*swish"),
    "unknown option": ({"layers": 2}, "unknown option 'layers'"),
    "no inputs": ({"inputs": []}, "'inputs'"),
    "inputs that are no list": ({"inputs": "weight"}, "'inputs' is 'weight'"),
    "no heads": ({"heads": None}, "'heads'"),
    "no hidden layer": ({"hidden": []}, "'hidden'"),
    "hidden layers that are no list": ({"hidden": 12}, "'hidden' is 12"),
    "a parameter that is global too": ({"heads": ["CL", "Q"]}, "'Q' is a global parameter and has a branch"),
    "no units": ({"hidden": [0]}, "hidden"),
    "less than no units": ({"hidden": [4, -2]}, "hidden"),
    "units that are no number": ({"hidden": ["twelve"]}, "hidden"),
    "a fraction of a unit": ({"hidden": [2.7]}, "hidden"),
    "a head twice": ({"heads": ["CL", "CL"]}, "CL"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_branch_that_makes_no_sense_is_refused(case: str) -> None:
    options, reason = BAD_OPTIONS[case]
    assert CovariateNetwork.build([GOOD], ["Q"], COVARIATES).parameters == ("CL", "Q")
    with pytest.raises(InputError, match=reason) as caught:
        CovariateNetwork.build([{**GOOD, **options}], ["Q"], COVARIATES)
    assert "\n" not in str(caught.value)


def test_a_branch_may_not_use_a_covariate_where_the_dataset_has_none() -> None:
    with pytest.raises(InputError, match="which has none"):
        CovariateNetwork.build([GOOD], [], {})


@pytest.mark.parametrize("entry", [{}, {"scale": 0}, {"scale": -150}, {"scale": "large"}], ids=str)
def test_a_covariate_needs_a_positive_scale(entry: dict[str, object]) -> None:
    with pytest.raises(InputError, match="scale"):
        CovariateNetwork.build([GOOD], ["Q"], {"weight": entry})


@pytest.mark.parametrize("hidden", [3, 4], ids=["same hidden layer", "other hidden layer"])
def test_two_branches_of_the_same_covariate_are_refused_or_have_values_of_their_own(hidden: int) -> None:
    branches = [GOOD, {**GOOD, "hidden": [hidden], "heads": ["V1"]}]
    try:
        network = CovariateNetwork.build(branches, ["Q"], COVARIATES)
    except InputError as error:
        assert "weight" in str(error)  # noqa: PT017
        return
    values = network.init(STREAMS, F64)
    weights = sum(value.numel() for name, value in values.items() if name.endswith("weight"))
    assert weights == len(STREAMS) * 2 * (3 + hidden)
    zeta = network.typical(values, covariates(4, 3))
    assert not torch.allclose(zeta["CL"], zeta["V1"])


# -- initial values and covariates that change in time ---------------------------------------------


def test_a_parameter_with_branches_begins_about_where_it_is_told_to() -> None:
    own, told = (CovariateNetwork.build([GOOD], ["Q"], COVARIATES, given) for given in ({}, {"CL": 40.0}))
    values, known = own.init(STREAMS, F64), covariates(4, 3)
    one, other = own.typical(values, known), told.typical(told.init(STREAMS, F64), known)
    torch.testing.assert_close(other["CL"], 40 * one["CL"], rtol=1e-12, atol=0)
    torch.testing.assert_close(other["Q"], one["Q"], rtol=0, atol=0)


def test_a_global_parameter_begins_where_it_is_told_to() -> None:
    network = CovariateNetwork.build([], ["CL", "V1", "Q"], {}, {"CL": 0.003, "V1": 250.0})
    streams = [Stream(0, 1, replicate) for replicate in (1, 2)]
    values = network.init(streams, torch.float64)
    zeta = network.typical(values, {})
    np.testing.assert_allclose(zeta["CL"], [0.003, 0.003], rtol=1e-12)
    np.testing.assert_allclose(zeta["V1"], [250, 250], rtol=1e-12)
    drawn = CovariateNetwork.build([], ["CL", "V1", "Q"], {}).init(streams, torch.float64)
    torch.testing.assert_close(values["global.Q"], drawn["global.Q"], rtol=0, atol=0)  # as without the others


@pytest.mark.parametrize(
    ("initial", "reason"),
    [
        ({"KA": 1.0}, "network.initial.KA: no such parameter; expected some of CL, V1"),
        ({"CL": 0}, "network.initial.CL is 0; expected a number above 0"),
        ({"CL": "low"}, "network.initial.CL is 'low'; expected a number above 0"),
    ],
)
def test_bad_initial_values_are_refused(initial: dict[str, float], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        CovariateNetwork.build([], ["CL", "V1"], {}, initial)
    assert reason in str(caught.value)


@pytest.mark.parametrize("together", [False, True], ids=["two branches", "one branch"])
def test_a_covariate_that_changes_has_a_typical_value_in_each_regime(together: bool) -> None:
    """Each regime's is that of a population with the regime's covariates."""
    covariates = {"weight": {"scale": 150}, "vwf": {"scale": 350}}
    branches: list[dict[str, object]] = (
        [{"inputs": ["weight", "vwf"], "hidden": [5], "heads": ["CL", "V1"]}]
        if together
        else [
            {"inputs": ["weight"], "hidden": [5], "heads": ["CL", "V1"]},
            {"inputs": ["vwf"], "hidden": [4, 3], "heads": ["CL"]},
        ]
    )
    network = CovariateNetwork.build(branches, ["Q"], covariates)
    values = network.init([Stream(0, 1, 1), Stream(0, 2, 1)], torch.float64)
    generator = torch.Generator().manual_seed(0)
    weight = 50 + 50 * torch.rand(1, 4, 2, generator=generator, dtype=torch.float64)
    vwf = 50 + 200 * torch.rand(3, 1, 4, 2, generator=generator, dtype=torch.float64)
    zeta = network.typical(values, {"weight": weight, "vwf": vwf})
    assert zeta["CL"].shape == (3, 1, 4, 2)
    assert zeta["Q"].shape == (2,)
    assert zeta["V1"].shape == ((3, 1, 4, 2) if together else (1, 4, 2))
    for regime in range(3):
        alone = network.typical(values, {"weight": weight, "vwf": vwf[regime]})
        torch.testing.assert_close(zeta["CL"][regime], alone["CL"], rtol=1e-12, atol=0)
        got = zeta["V1"][regime] if together else zeta["V1"]
        torch.testing.assert_close(got, alone["V1"], rtol=1e-12, atol=0)
