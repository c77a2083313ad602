"""What is observed of a model: its outputs and the residual error of each, made of option ``endpoints``."""

from collections.abc import Mapping
from dataclasses import replace

from medcm_cli.checks import as_option
from medcm_cli.errors import InputError
from medcm_cli.model import EndpointErrors, ErrorModel
from medcm_cli.pk import PkModel
from medcm_cli.runs import Units
from medcm_cli.study.endpoints import OWN
from medcm_cli.study.identity import Config
from medcm_cli.study.options import made


def observing(pk: PkModel, endpoints: Config | None) -> PkModel:
    """A model of whose outputs those of the endpoints are observed.

    :raises InputError: it has no such output, or several and none of them is chosen.
    """
    if endpoints is None:
        several = getattr(getattr(pk, "facts", None), "outputs", {})
        if several:
            first = next(iter(several))
            say = as_option("endpoints", **{first: {"output": first}})
            raise InputError(
                f"pk has the outputs {', '.join(several)}; {say} observes one, and more tell them apart"
            )
        return pk
    for name, endpoint in endpoints.items():
        if endpoint["output"] not in pk.outputs:
            raise InputError(
                f"endpoints.{name}.output is {endpoint['output']!r}; expected {' or '.join(pk.outputs)}, "
                "which pk has"
            )
        if endpoint.get("over") is not None and pk.abscissa is not None:
            raise InputError(f"endpoints.{name}.over: is a part of a record over time, which this pk has not")
    return pk.observing([endpoint["output"] for endpoint in endpoints.values()])


def error_of(config: Config, sigma: Mapping[str, float], units: Units) -> ErrorModel:
    """The residual error that a configuration describes, of several endpoints that of each.

    :param sigma: those that are known.
    :raises InputError: options that are unknown or do not fit together.
    """
    endpoints = config["endpoints"]
    if endpoints is None:
        if config["error"].get("_target_") == OWN:
            raise InputError(
                "error=endpoints: each endpoint has its own; expected endpoints, or another error"
            )
        error = _sized(made(config["error"], "error", fixed=sigma), config["error"], units.usual_level)
        return _above_zero(error, config["dataset"]["blq"])
    errors = dict[str, ErrorModel]()
    known = dict(sigma)
    for number, (name, endpoint) in enumerate(endpoints.items()):
        ending = f"_{name}"
        own = {part.removesuffix(ending): known.pop(part) for part in list(known) if part.endswith(ending)}
        error = made(endpoint["error"], "error", fixed=own)
        level = number == 0 or endpoint.get("unit") == units.level
        usual = endpoint.get("size") or (units.usual_level if level else 1.0)
        errors[name] = _above_zero(_sized(error, endpoint["error"], usual), config["dataset"]["blq"])
    if known:
        every = " or ".join(EndpointErrors(errors).components)
        raise InputError(f"fixed.sigma.{min(known)}: no such component of the errors; expected {every}")
    weights = {name: float(one["size"]) for name, one in endpoints.items() if one.get("size")}
    return EndpointErrors(errors, weights)


def fixing(error: ErrorModel, known: Mapping[str, float]) -> ErrorModel:
    """The same with more sigmas that are known, by the names of its components."""
    if not isinstance(error, EndpointErrors):
        found: ErrorModel = replace(error, fixed={**error.fixed, **known})  # type: ignore[type-var]
        return found
    errors = {
        name: fixing(
            one, {part: known[f"{part}_{name}"] for part in one.components if f"{part}_{name}" in known}
        )
        for name, one in error.errors.items()
    }
    return replace(error, errors=errors)


def _sized(error: ErrorModel, options: Config, usual: float) -> ErrorModel:
    """An error that begins at a usual size, where it has one and its options do not say it."""
    has = "size" in getattr(error, "__dataclass_fields__", {})
    sized: ErrorModel = error
    if has and usual != 1 and "size" not in options:
        sized = replace(error, size=usual)  # type: ignore[type-var]
    return sized


def _above_zero(error: ErrorModel, rule: str) -> ErrorModel:
    """An error of observations that are all above 0, where the rule for limits is M4."""
    if rule != "M4" or error.needs_positive:
        return error
    if "above_zero" not in getattr(error, "__dataclass_fields__", {}):
        raise InputError("dataset.blq=M4 is there for normal errors and log_normal; expected M3 or M1")
    found: ErrorModel = replace(error, above_zero=True)  # type: ignore[type-var]
    return found
