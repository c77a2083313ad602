"""The models of conf/pk that are given by a rate function: each against its equations written out for scipy,
its sensitivities against differences, and what is conserved."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.integrate import solve_ivp
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk import OdeModel, PkModel, Schedule, check_schedule, sensitivities, solve
from medcm_cli.study.options import conf_dir, made
from tests.pk.regimens import Dose, Regimen, built, close

F64 = torch.float64
Z = Mapping[str, Any]  # of one subject, or of N: (N,) each
Right = Callable[[Any, np.ndarray, Z], Sequence[Any]]


class Case(NamedTuple):
    """A choice of conf/pk, values of its parameters, and the same model by hand: dA/dt, amounts at first,
    what is observed, the state that doses go into and their size."""

    choice: str
    values: Z
    right: Right
    start: Callable[[Z], Sequence[Any]]
    seen: Callable[[np.ndarray, Z], Any]
    dosed: int = 0
    size: float = 100.0
    tolerance: float = 1e-9


ONE = {"CL": 0.6, "V1": 5.0}
TWO = {**ONE, "Q": 1.2, "V2": 8.0}


def named(choice: str, parameters: Sequence[str] | None = None, **options: Any) -> OdeModel:
    """A choice as the configuration has it, in amount/L, with close tolerances."""
    files = ("_doses", "_integrated", f"pk/{choice}")
    parts = [OmegaConf.load(conf_dir() / f"{name}.yaml") for name in files]
    given = OmegaConf.to_container(OmegaConf.merge(*parts), resolve=True)
    assert isinstance(given, dict)
    config = {str(key): value for key, value in given.items() if key != "defaults"}
    if "amount_per_level" in config:
        config["amount_per_level"] = 1.0
    config |= {"rtol": 1e-9, "atol": 1e-9, **options}
    config |= {} if parameters is None else {"parameters": list(parameters)}
    pk = made(config, "pk")
    assert isinstance(pk, OdeModel)
    return pk


def hill(c: Any, half: Any, power: Any = 1.0) -> Any:
    above = np.maximum(c, 0.0) ** power
    return above / (half**power + above)


def central(t: Any, y: np.ndarray, z: Z) -> list[Any]:
    """One compartment."""
    del t
    return [-z["CL"] / z["V1"] * y[0]]


def oral_two(y: np.ndarray, z: Z, out: Any) -> list[Any]:
    """Depot, central, peripheral."""
    over = z["Q"] * (y[1] / z["V1"] - y[2] / z["V2"])
    return [-z["KA"] * y[0], z["KA"] * y[0] - out - over, over]


def saturable(c: Any, z: Z) -> Any:
    return z["VM"] * c / (z["KM"] + c)


def metabolite(t: Any, y: np.ndarray, z: Z) -> list[Any]:
    del t
    c = y[0] / z["V1"]
    return [-(z["CL"] + z["CLF"]) * c, z["CLF"] * c - z["CLM"] * y[1] / z["V1M"]]


def response(form: Callable[[Any, Z], Any], lose: Callable[[Any, Z], Any]) -> Right:
    def right(t: Any, y: np.ndarray, z: Z) -> list[Any]:
        c = y[0] / z["V1"]
        return [*central(t, y, z), z["KIN"] * form(c, z) - z["KOUT"] * lose(c, z) * y[1]]

    return right


def one(c: Any, z: Z) -> Any:
    del c, z
    return 1.0


def less(c: Any, z: Z) -> Any:
    return 1 - hill(c, z["IC50"])


def more(c: Any, z: Z) -> Any:
    return 1 + z["EMAX"] * hill(c, z["EC50"])


def bound(t: Any, y: np.ndarray, z: Z) -> list[Any]:
    """Free drug, target, complex."""
    del t
    c = y[0] / z["V1"]
    net = z["KON"] * c * y[1] - z["KOFF"] * y[2]
    return [
        -z["CL"] * c - net * z["V1"],
        z["KDEG"] * (z["R0"] - y[1]) - net,
        net - z["KINT"] * y[2],
    ]


def free(y: np.ndarray, z: Z) -> Any:
    total = y[0] / z["V1"]
    b = total - y[1] - z["KSS"]
    return 0.5 * (b + np.sqrt(b * b + 4 * z["KSS"] * total))


def quasi_steady(t: Any, y: np.ndarray, z: Z) -> list[Any]:
    del t
    c = free(y, z)
    complex_ = y[0] / z["V1"] - c
    return [
        -z["CL"] * c - z["KINT"] * complex_ * z["V1"],
        z["KDEG"] * z["R0"] - z["KDEG"] * (y[1] - complex_) - z["KINT"] * complex_,
    ]


def claret(t: Any, y: np.ndarray, z: Z) -> list[Any]:
    kill = z["KD"] * np.exp(-z["LAMBDA"] * t) * y[0] / z["V1"]
    return [*central(t, y, z), (z["KG"] - kill) * y[1]]


def simeoni(t: Any, y: np.ndarray, z: Z) -> list[Any]:
    w = y[1:].sum(0)
    grown = z["L0"] * y[1] / (1 + (z["L0"] / z["L1"] * w) ** 20) ** (1 / 20)
    hit = z["K2"] * y[0] / z["V1"] * y[1]
    died = z["K1"] * y[2:]
    return [*central(t, y, z), grown - hit, hit - died[0], died[0] - died[1], died[1] - died[2]]


def effect_site(t: Any, y: np.ndarray, z: Z) -> list[Any]:
    return [*central(t, y, z), z["KE0"] * (y[0] / z["V1"] - y[1])]


DRUG = ("central",)
RESPONSE = {**ONE, "KIN": 4.0, "KOUT": 0.3}
PLUS, MINUS = {"EMAX": 3.0, "EC50": 4.0}, {"IC50": 4.0}


def nothing(z: Z) -> list[Any]:
    del z
    return [0.0]


def of(place: int, volume: str = "") -> Callable[[np.ndarray, Z], Any]:
    """A state, or its concentration."""
    return lambda y, z: y[place] / (z[volume] if volume else 1.0)


def rest(z: Z) -> list[Any]:
    return [0.0, z["KIN"] / z["KOUT"]]


CASES = [
    Case(
        "michaelis_menten_oral",
        {"VM": 8.0, "KM": 3.0, "V1": 5.0, "KA": 0.8},
        lambda _, y, z: [-z["KA"] * y[0], z["KA"] * y[0] - saturable(y[1] / z["V1"], z)],
        lambda _: [0.0, 0.0],
        of(1, "V1"),
    ),
    Case(
        "michaelis_menten_two_compartment",
        {"VM": 8.0, "KM": 3.0, "V1": 5.0, "Q": 1.2, "V2": 8.0},
        lambda _, y, z: oral_two(np.stack([0 * y[0], *y]), {**z, "KA": 0.0}, saturable(y[0] / z["V1"], z))[
            1:
        ],
        lambda _: [0.0, 0.0],
        of(0, "V1"),
    ),
    Case(
        "michaelis_menten_two_compartment_oral",
        {"VM": 8.0, "KM": 3.0, "V1": 5.0, "Q": 1.2, "V2": 8.0, "KA": 0.8},
        lambda _, y, z: oral_two(y, z, saturable(y[1] / z["V1"], z)),
        lambda _: [0.0, 0.0, 0.0],
        of(1, "V1"),
    ),
    Case(
        "michaelis_menten_two_compartment_oral",
        {"VM": 8.0, "KM": 3.0, **TWO, "KA": 0.8},
        lambda _, y, z: oral_two(y, z, saturable(y[1] / z["V1"], z) + z["CL"] * y[1] / z["V1"]),
        lambda _: [0.0, 0.0, 0.0],
        of(1, "V1"),
    ),
    Case(
        "endogenous",
        {**TWO, "KA": 0.8, "BASE": 3.0},
        lambda _, y, z: oral_two(y, z, z["CL"] * (y[1] / z["V1"] - z["BASE"])),
        lambda z: [0.0, z["BASE"] * z["V1"], z["BASE"] * z["V2"]],
        of(1, "V1"),
    ),
    Case(
        "endogenous",
        {**ONE, "BASE": 3.0},
        lambda _, y, z: [z["CL"] * (z["BASE"] - y[0] / z["V1"])],
        lambda z: [z["BASE"] * z["V1"]],
        of(0, "V1"),
    ),
    Case(
        "metabolite", {**ONE, "CLF": 0.9, "CLM": 0.4, "V1M": 3.0}, metabolite, lambda _: [0, 0], of(1, "V1M")
    ),
    Case(
        "binding",
        {**ONE, "KON": 0.4, "KOFF": 0.2, "KDEG": 0.1, "KINT": 0.05, "R0": 6.0},
        bound,
        lambda z: [0.0, z["R0"], 0.0],
        of(0, "V1"),
        tolerance=1e-7,
    ),
    Case(
        "binding",
        {**ONE, "KON": 40.0, "KOFF": 2.0, "KDEG": 0.1, "KINT": 0.05, "R0": 6.0},
        bound,
        lambda z: [0.0, z["R0"], 0.0],
        of(0, "V1"),
        size=20.0,
        tolerance=1e-7,
    ),
    Case(
        "binding_quasi_steady",
        {**ONE, "KSS": 0.6, "KDEG": 0.1, "KINT": 0.05, "R0": 6.0},
        quasi_steady,
        lambda z: [0.0, z["R0"]],
        free,
    ),
    Case(
        "effect_linear",
        {**ONE, "E0": 7.0, "SLOPE": 0.4},
        central,
        nothing,
        lambda y, z: z["E0"] + z["SLOPE"] * y[0] / z["V1"],
    ),
    Case(
        "effect_emax",
        {**ONE, "E0": 7.0, **PLUS},
        central,
        nothing,
        lambda y, z: z["E0"] + z["EMAX"] * hill(y[0] / z["V1"], z["EC50"]),
    ),
    Case(
        "effect_emax",
        {**ONE, "E0": 7.0, "IC50": 4.0, "IMAX": 0.7},
        central,
        nothing,
        lambda y, z: z["E0"] * (1 - z["IMAX"] * hill(y[0] / z["V1"], z["IC50"])),
    ),
    Case(
        "effect_hill",
        {**ONE, "E0": 7.0, **PLUS, "HILL": 2.6},
        central,
        nothing,
        lambda y, z: z["E0"] + z["EMAX"] * hill(y[0] / z["V1"], z["EC50"], z["HILL"]),
    ),
    Case(
        "effect_compartment",
        {**ONE, "KE0": 0.4, "E0": 7.0, **PLUS},
        effect_site,
        lambda _: [0.0, 0.0],
        lambda y, z: z["E0"] + z["EMAX"] * hill(y[1], z["EC50"]),
    ),
    Case("response_inhibited_formation", {**RESPONSE, **MINUS}, response(less, one), rest, of(1)),
    Case("response_inhibited_loss", {**RESPONSE, **MINUS}, response(one, less), rest, of(1)),
    Case("response_stimulated_formation", {**RESPONSE, **PLUS}, response(more, one), rest, of(1)),
    Case("response_stimulated_loss", {**RESPONSE, **PLUS}, response(one, more), rest, of(1)),
    Case(
        "response_stimulated_loss",
        {**RESPONSE, "SLOPE": 0.3},
        response(one, lambda c, z: 1 + z["SLOPE"] * c),
        rest,
        of(1),
    ),
    Case(
        "response_inhibited_formation",
        {**ONE, "BASE": 12.0, "KOUT": 0.3, "IC50": 4.0, "IMAX": 0.8, "HILL": 1.7},
        response(
            lambda c, z: z["BASE"] * z["KOUT"] / z["KIN"] * (1 - z["IMAX"] * hill(c, z["IC50"], z["HILL"])),
            one,
        ),
        lambda z: [0.0, z["BASE"]],
        of(1),
    ),
    Case(
        "response_turnover",
        {"BASE": 12.0, "KOUT": 0.3},
        lambda _, y, z: [z["KOUT"] * (z["BASE"] - y[0])],
        lambda z: [z["BASE"]],
        of(0),
    ),
    Case(
        "tumour_claret",
        {**ONE, "KG": 0.02, "KD": 0.01, "LAMBDA": 0.03, "W0": 40.0},
        claret,
        lambda z: [0.0, z["W0"]],
        of(1),
    ),
    Case(
        "tumour_simeoni",
        {**ONE, "L0": 0.05, "L1": 1.5, "K1": 0.2, "K2": 0.01, "W0": 25.0},
        simeoni,
        lambda z: [0.0, z["W0"], 0.0, 0.0, 0.0],
        lambda y, _: y[1:].sum(0),
    ),
]
EACH = [
    pytest.param(
        case,
        id=f"{case.choice} {'-'.join(case.values)}",
        marks=[pytest.mark.slow] if case.size < 100 else [],  # fast binding takes seconds
    )
    for case in CASES
]
TIMES = (0.0, 0.5, 2.0, 11.9, 13.0, 30.0)


def regimen(size: float) -> Regimen:
    """A dose at once and an infusion."""
    return Regimen([Dose(0.25, size), Dose(12.0, 0.6 * size, 3.0)], TIMES)


def by_scipy(case: Case, z: Z) -> np.ndarray:
    """From event to event."""
    z = {"KIN": 1.0, **z}
    y, found = np.array(case.start(z), dtype=float), {}
    edges = sorted({*TIMES, 0.25, 12.0, 15.0})
    for left, right in [(0.0, 0.0), *itertools.pairwise(edges)]:
        if left < right:
            inflow = np.zeros(len(y))
            inflow[case.dosed] = 0.6 * case.size / 3 if 12.0 <= left < 15.0 else 0.0
            y = solve_ivp(
                lambda t, y, inflow=inflow: np.asarray(case.right(t, y, z)) + inflow,
                (left, right),
                y,
                method="Radau" if case.choice == "binding" else "DOP853",
                rtol=1e-10,
                atol=1e-11,
            ).y[:, -1]
        if right in TIMES:
            found[right] = case.seen(y, z)
        if right == 0.25:
            y[case.dosed] += case.size
    return np.array([found[time] for time in TIMES])


def values_of(case: Case, subjects: int, seed: int) -> dict[str, Tensor]:
    """(1, N, 1) each, about those of the case."""
    g = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(value * np.exp(g.uniform(-0.4, 0.4, subjects)))[None, :, None]
        for name, value in case.values.items()
    }


@pytest.mark.parametrize("case", EACH)
def test_a_model_equals_its_equations(case: Case) -> None:
    pk = named(case.choice, tuple(case.values), rtol=case.tolerance, atol=case.tolerance)
    z, schedule = values_of(case, 2, 1), built(regimen(case.size))
    check_schedule(pk, schedule)
    want = [by_scipy(case, {name: float(value[0, n, 0]) for name, value in z.items()}) for n in range(2)]
    got = solve(pk, schedule, z)[:, 0, :, 0]
    close(got, np.stack(want, -1), 1e-8 if pk.by_exponential else 100 * case.tolerance)
    assert pk.by_exponential == case.choice.startswith(
        ("endogenous", "metabolite", "effect", "response_turn")
    )


def sensitivities_are_differences(
    pk: PkModel, schedule: Schedule, z: dict[str, Tensor], names: Sequence[str]
) -> None:
    """Between fits of one batch, which a solver takes the same steps for. :param z: (1, N, 1) of each of the
    ``names``, and weights that all fits share, (..., 1)."""
    step = 1e-4
    fits = {name: value.repeat(1, 1, 1 + 2 * len(names)) for name, value in z.items()}
    for number, name in enumerate(names):
        for place, sign in ((1 + 2 * number, 1), (2 + 2 * number, -1)):
            fits[name][..., place] *= np.exp(sign * step)
    with torch.no_grad():
        moved = solve(pk, schedule, fits)
        _, slopes = sensitivities(pk, schedule, fits, names)
    size = float(torch.stack(slopes).abs().max())
    for number, slope in enumerate(slopes):
        want = (moved[..., 1 + 2 * number] - moved[..., 2 + 2 * number]) / (2 * step)
        torch.testing.assert_close(slope[..., 0], want, rtol=1e-6, atol=1e-6 * size)


@pytest.mark.parametrize("case", EACH)
def test_sensitivities_are_derivatives(case: Case) -> None:
    names = tuple(case.values)
    pk = named(case.choice, names, rtol=1e-7, atol=1e-7)
    sensitivities_are_differences(pk, built(regimen(case.size)), values_of(case, 2, 2), names)


@pytest.mark.parametrize("case", EACH)
def test_parameters_have_units(case: Case) -> None:
    assert set(named(case.choice, tuple(case.values)).units) == set(case.values)


@pytest.mark.parametrize("choice", sorted({case.choice for case in CASES}))
def test_parameters_of_a_choice_are_those_of_a_case(choice: str) -> None:
    own = named(choice)
    assert any(set(case.values) == set(own.parameters) for case in CASES if case.choice == choice)


@pytest.mark.parametrize(
    ("choice", "parameters", "idle"),
    [
        ("effect_emax", ("CL", "V1", "E0", "EMAX", "EC50", "IC50"), "EMAX"),
        ("effect_linear", ("CL", "V1", "E0", "SLOPE", "HILL"), "HILL"),
        ("response_inhibited_loss", ("CL", "V1", "KIN", "BASE", "KOUT", "IC50"), "KIN"),
        ("binding", ("CL", "V1", "KON", "KOFF", "KDEG", "KINT", "R0", "KSS"), "KSS"),
    ],
)
def test_a_parameter_that_means_nothing_is_refused(
    choice: str, parameters: tuple[str, ...], idle: str
) -> None:
    with pytest.raises(InputError, match=rf"pk\.parameters has {idle}, which means nothing"):
        named(choice, parameters)


def test_a_parameter_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="reads parameter 'EC50'"):
        named("effect_emax", ("CL", "V1", "E0", "EMAX"))


DRUGS = [
    ("kinetics", ("V1", "KA", "Q", "V2", "CL"), ("depot", "central", "peripheral"), 0.0),
    ("metabolite", ("V1", "CLF", "CLM", "V1M", "CL"), ("central", "metabolite"), 0.0),
    ("binding", ("V1", "KON", "KOFF", "KDEG", "KINT", "R0", "CL"), ("central",), 1.0),
]


@pytest.mark.parametrize(("kind", "names", "states", "bound"), DRUGS, ids=[kind for kind, *_ in DRUGS])
def test_what_is_not_eliminated_is_still_there(
    kind: str, names: Sequence[str], states: Sequence[str], bound: float
) -> None:
    """Where what leaves the body does so at a rate of next to nothing: of two doses, 160 in all."""
    pk = named({"kinetics": "michaelis_menten_two_compartment_oral"}.get(kind, kind), names)
    z = {name: torch.tensor([0.7], dtype=F64) for name in pk.parameters}
    z |= {name: torch.tensor([1e-14], dtype=F64) for name in ("CL", "CLM", "KINT", "KDEG") if name in z}

    def total(t: Tensor, a: Any, p: Any) -> Any:
        del t
        return sum(getattr(a, state) for state in states) + (bound * p.V1 * a.complex if bound else 0.0)

    got = solve(replace(pk, output=total, amount_per_level=1.0), built(regimen(100.0)), z).flatten()
    want = torch.tensor([0.0, 100, 100, 100, 120, 160], dtype=F64)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("choice", ["response_turnover", "endogenous", "response_inhibited_loss"])
def test_at_rest_nothing_changes(choice: str) -> None:
    """Without any dose."""
    pk = named(choice)
    z = {name: torch.tensor([1.3], dtype=F64) for name in pk.parameters}
    got = solve(pk, built(Regimen([Dose(0.0, 0.0)], TIMES)), z)
    want = 1.0 if "KIN" in pk.parameters else 1.3
    torch.testing.assert_close(got, torch.full_like(got, want), rtol=1e-9, atol=0)
    assert not pk.begins_empty


GUARDED = ("michaelis_menten_oral", "binding_quasi", "response_inhibited_formation", "tumour")


@pytest.mark.parametrize("case", [case for case in CASES if case.choice.startswith(GUARDED)])
@pytest.mark.parametrize("size", [1e-4, 1e3])
def test_nothing_falls_below_zero_in_float32(case: Case, size: float) -> None:
    """After a dose of next to nothing and after one of very much, until all is gone."""
    pk = named(case.choice, tuple(case.values), rtol=1e-4, atol=1e-4)
    z = {name: torch.tensor([value]) for name, value in case.values.items()}
    schedule = built(Regimen([Dose(0.0, size * case.size)], (0.1, 5.0, 50.0, 300.0))).to(torch.float32)
    got = solve(pk, schedule, z)
    assert bool(got.isfinite().all())
    assert float(got.min()) > -1e-3
