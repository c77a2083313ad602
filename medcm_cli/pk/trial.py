"""A model's functions, tried at a few points before anything is computed with them: whether they do what is
said of them, and what can be made of it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medcm_cli.errors import InputError
from medcm_cli.pk.dosing import Values
from medcm_cli.pk.rates import Function, Output, Start, Written, matrix, name_of

_SAMPLES = 5  # points that a function is tried at
_MAGNITUDES = (1.0, 1e-3, 1e3)  # of amounts there, times their place in [0.5, 1.5]
_STEP, _ALIKE = 1e-5, 1e-2  # relative, of differences, and how close derivatives must come to them
# Operations that are the same formula everywhere: what consists of them, and has a constant slope at some
# places, has it at all.
_SMOOTH = {
    *("add", "sub", "rsub", "mul", "div", "true_divide", "neg", "pow", "square", "reciprocal"),
    *("exp", "expm1", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "tanh", "sigmoid", "sin", "cos"),
    *("__radd__", "__rsub__", "__rmul__", "__rdiv__", "__rtruediv__", "__pow__", "__rpow__"),
    *("unbind", "stack", "__get__"),
}


class _Anything:
    """States of every name."""

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._value


def states_of(written: Written) -> tuple[str, ...]:
    """The states of a rate, as it gives them."""
    function, parameters = written.function, written.parameters
    t, amounts, z = points(1, parameters, 0)
    z |= _examples(written)

    def call() -> Any:
        return written.given(t, _Anything(amounts[0]), z)

    found = _called("rate", function, call)
    if not isinstance(found, Mapping):
        raise _refused("rate", function, f"gives {_kind(found)}; expected {{state: its rate}}")
    return tuple(map(str, found))


class Facts(NamedTuple):
    """Of a model, whether its rate depends on the time, is linear in amounts, and is not 0 where these are,
    and whether nothing is observed as long as nothing is given. ``outputs``: of a function that gives
    several, each and whether it is something without any amount."""

    timed: bool
    linear: bool
    source: bool
    empty: bool
    outputs: Mapping[str, bool] = {}


@functools.lru_cache(64)
def facts_of(written: Written, output: Output | None, start: Start | None) -> Facts:
    """Functions tried.

    :raises InputError: in one line that names it, whatever one does wrong.
    """
    if start is not None:
        check_start(start)
    check(written, start)
    if output is not None:
        check(output)
    t, amounts, z = points(len(written.states), written.parameters, 0)
    nothing = torch.zeros_like(amounts)
    source = bool((written(t, nothing, z | _examples(written)) != 0).any())
    rows = {} if output is None else output.rows(t, nothing, z)
    seen = {name: bool((row != 0).any()) for name, row in rows.items()}
    empty = not (source or any(seen.values()) or start)
    several = seen if "" not in seen else {}
    return Facts(is_timed(written), is_linear(written), source, empty, several)


def unread(written: Written, output: Output | None, start: Start | None) -> list[str]:
    """Parameters that no function of a model depends on."""
    t, amounts, z = points(len(written.states), written.parameters, 0)
    with torch.enable_grad():
        leaves = {name: value.requires_grad_() for name, value in z.items()}
        found = [written(t, amounts, leaves | _examples(written))]
        found += output.rows(t, amounts, leaves).values() if output is not None else []
        found += [start(leaves)] if start is not None else []
        total = torch.stack([of.sum() for of in found]).sum()
        slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return [name for name, slope in zip(leaves, slopes, strict=True) if slope is None]


def _examples(written: Written | Output) -> dict[str, Tensor]:
    return {n: value for term in getattr(written, "terms", ()) for n, value in term.example().items()}


def check(written: Written | Output, start: Start | None = None) -> None:
    """Try a function at some points.

    :raises InputError: in one line that names it, whatever it does wrong.
    """
    what = "rate" if isinstance(written, Written) else "output"
    function, states = written.function, written.states
    t, amounts, z = points(len(states), written.parameters, 0)
    z |= _examples(written)
    found = _called(what, function, lambda: written.raw(t, amounts, z))
    if what == "rate":
        _check_mapping(what, function, found, states, whole=True)
    elif isinstance(found, Mapping):
        _check_outputs(function, found)
    else:
        _check_value(what, function, "", found)
    _check_shapes(what, written, (t, amounts, z))
    _check_gradients(what, written, (t, amounts, z))
    if what == "rate":
        begin = torch.zeros_like(amounts) if start is None else start(z)
        wrong = _at(written, t, begin, z).isnan().flatten(1).all(1)
        if bool(wrong.any()):
            state = states[int(wrong.int().argmax())]
            raise _refused(what, function, f"is not a number for {state} at the amounts that it begins with")


def check_start(start: Start) -> None:
    """The same of what a model begins with. :raises InputError: likewise."""
    _, _, z = points(1, start.parameters, 0)
    found = _called("start", start.function, lambda: start.raw(z))
    _check_mapping("start", start.function, found, start.states, whole=False)


def is_timed(written: Written) -> bool:
    """Whether a rate depends on the time."""
    _, amounts, z = points(len(written.states), written.parameters, 0)
    z |= _examples(written)
    read = list[Any]()

    class Clock(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
            read.extend(part for part in _flat((given, options or {})) if part is t)
            return function(*given, **(options or {}))

    t = torch.zeros_like(amounts[0])
    with Clock():
        written.raw(t, amounts, z)
    return bool(read)


def is_linear(written: Written) -> bool:
    """Whether a rate is linear in the amounts, but for a part that does not depend on them: of operations
    that are the same everywhere, with slopes that do not depend on amounts, of several magnitudes."""
    if written.terms or is_timed(written):
        return False
    seen = set[str]()

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
            seen.add(str(getattr(function, "__name__", function)))
            return function(*given, **(options or {}))

    slopes = []
    for number, size in enumerate(_MAGNITUDES):
        t, amounts, z = points(len(written.states), written.parameters, 0)
        amounts = amounts.roll(number, 2) * size
        with Seen():
            written.raw(t, amounts, z)
        with torch.enable_grad():
            slopes.append(matrix(written, amounts, z))
    same = all(torch.allclose(slope, slopes[0], rtol=1e-9, atol=0) for slope in slopes[1:])
    return same and seen <= _SMOOTH and not any(slope.requires_grad for slope in slopes)


def points(count: int, parameters: Sequence[str], seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Where functions are tried: times (1, N, 1), amounts (count, 1, N, 1) and parameters, all between 0.5
    and 1.5."""
    g = torch.Generator(device="cpu").manual_seed(seed)
    drawn = 0.5 + torch.rand(
        1 + count + len(parameters), 1, _SAMPLES, 1, generator=g, dtype=torch.float64, device="cpu"
    )
    return drawn[0], drawn[1 : 1 + count], dict(zip(parameters, drawn[1 + count :], strict=True))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [part for one in value for part in _flat(one)]
    return [value]


def _refused(what: str, function: Function, words: str) -> InputError:
    return InputError(f"{what} function {name_of(function)} {words}")


def _kind(value: object) -> str:
    return "nothing (None)" if value is None else f"a value of type {type(value).__name__}"


def _called(what: str, function: Function, call: Callable[[], Any]) -> Any:
    """What a function gives. :raises InputError: it fails."""
    try:
        return call()
    except InputError:
        raise
    except AttributeError as error:
        names = getattr(error.obj, "_fields", None)
        if names is None or error.name is None:
            raise _failed(what, function, error) from error
        kind = type(error.obj).__name__
        words, letter = {
            "State": ("state", "a"),
            "Parameters": ("parameter", "p"),
            "Learned": ("learned term", "the learned terms"),
        }[kind]
        raise _refused(
            what, function, f"reads {words} {error.name!r}; {letter} has {', '.join(names)}"
        ) from error
    except Exception as error:  # whatever another's code runs into
        raise _failed(what, function, error) from error


def _failed(what: str, function: Function, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    hint = ""
    if any(part in reason for part in ("only one element", "scalar", "ambiguous", "numpy", "array")):
        hint = "; expected operations of torch (torch.exp, torch.where) in place of math, numpy and if"
    elif "tuple indices" in reason:
        hint = "; expected names, as in a.central and p.CL"
    return _refused(what, function, f"fails: {type(error).__name__}: {reason[:200]}{hint}")


def _check_mapping(what: str, function: Function, found: object, states: Sequence[str], whole: bool) -> None:
    if not isinstance(found, Mapping):
        expected = "{" + ", ".join(f"{state!r}: ..." for state in states) + "}"
        raise _refused(what, function, f"gives {_kind(found)}; expected {expected}")
    known = ", ".join(states)
    unknown = [state for state in found if state not in states]
    if unknown:
        raise _refused(what, function, f"gives {unknown[0]!r}, which is no state; the states are {known}")
    missing = [state for state in states if state not in found]
    if whole and missing:
        raise _refused(what, function, f"gives no rate of {missing[0]!r}; the states are {known}")
    for state, value in found.items():
        _check_value(what, function, f" for {state!r}", value)


def _check_outputs(function: Function, found: Mapping[Any, object]) -> None:
    for name, value in found.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise _refused("output", function, f"gives {name!r}; expected names, as in 'response'")
        _check_value("output", function, f" for {name!r}", value)
    if not found:
        raise _refused("output", function, "gives no output; expected {name: value}")


def _check_value(what: str, function: Function, of: str, value: object) -> None:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain and not (isinstance(value, Tensor) and value.is_floating_point()):
        raise _refused(what, function, f"gives {_kind(value)}{of}; expected a number for each subject")
    if isinstance(value, Tensor) and value.requires_grad:
        raise _refused(
            what,
            function,
            f"depends on a trained tensor of its own{of}, which no fit would train; "
            "expected a parameter (pk.parameters) or a learned term (pk.terms)",
        )


def _at(written: Written | Output, t: Tensor, amounts: Tensor, z: Values) -> Tensor:
    if isinstance(written, Written):
        return written(t, amounts, z)
    like = amounts[0]
    return torch.stack([row.expand_as(like) for row in written.rows(t, amounts, z).values()])


def _check_shapes(
    what: str, written: Written | Output, point: tuple[Tensor, Tensor, dict[str, Tensor]]
) -> None:
    """Each trajectory for itself, and several stages of a step at once."""
    t, amounts, z = point

    def alone(number: int) -> Tensor:
        one = slice(number, number + 1)
        own = {name: value[..., one, :] if value.ndim < 4 else value for name, value in z.items()}
        return _at(written, t[:, one], amounts[:, :, one], own)

    def several() -> Tensor:
        return _at(written, torch.stack([t, t + 1]), torch.stack([amounts, amounts], 1), z)[:, 0]

    def call() -> tuple[Tensor, Tensor, Tensor]:
        return (
            _at(written, t, amounts, z),
            torch.cat([alone(number) for number in range(_SAMPLES)], -2),
            several(),
        )

    whole, each, staged = _called(what, written.function, call)
    for other in (each, staged):
        if other.shape != whole.shape or not torch.allclose(other, whole, equal_nan=True):
            raise _refused(
                what,
                written.function,
                "mixes subjects or depends on shapes; expected arithmetic of each value for itself, without "
                "sums, means or indices",
            )


def _check_gradients(
    what: str, written: Written | Output, point: tuple[Tensor, Tensor, dict[str, Tensor]]
) -> None:
    """Derivatives against differences: what leaves torch has none."""
    t, amounts, z = point
    inputs = {f"a.{name}": amounts[place] for place, name in enumerate(written.states)}
    inputs |= {f"p.{name}": z[name] for name in written.parameters}

    def value(given: Mapping[str, Tensor]) -> Tensor:
        own = {name: given.get(f"p.{name}", other) for name, other in z.items()}
        found = _at(written, t, torch.stack([given[f"a.{name}"] for name in written.states]), own)
        # Of each state as much as of no other: what leaves one for another would cancel.
        return sum((number * row for number, row in enumerate(found, 1)), torch.zeros_like(t))

    def slopes() -> dict[str, Tensor]:
        with torch.enable_grad():
            leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
            total = value(leaves).sum()
            if not total.requires_grad:
                return {name: torch.zeros_like(x) for name, x in inputs.items()}
            each = list(leaves.values())
            grads = torch.autograd.grad(total, each, allow_unused=True, materialize_grads=True)
            return dict(zip(leaves, grads, strict=True))

    by_torch: dict[str, Tensor] = _called(what, written.function, slopes)
    for name, x in inputs.items():
        above, below = (value({**inputs, name: x * by}) for by in (1 + _STEP, 1 - _STEP))
        wanted = (above - below) / (2 * _STEP * x)
        size = wanted.abs() + by_torch[name].abs() + 1e-6 * above.abs()
        if bool(((wanted - by_torch[name]).abs() > _ALIKE * size).all()):
            raise _refused(
                what,
                written.function,
                f"has no derivative by {name} that torch finds; expected operations of torch alone, without "
                "detach, item or numpy",
            )
