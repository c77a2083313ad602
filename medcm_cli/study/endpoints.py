"""Option ``endpoints``: what is observed, where that is more than one thing."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from medcm_cli.checks import number, one_of, shown
from medcm_cli.errors import InputError
from medcm_cli.study.identity import Config

_OPTIONS = ("dvid", "cmt", "column", "value", "output", "over", "error", "unit", "size")
_EXAMPLE = "endpoints='{cp: {dvid: 1, output: central}, pca: {dvid: 2, output: response, unit: \"%\"}}'"
_PLAIN = (str, int, float)
OWN = "medcm_cli.model.EndpointErrors"
"""What ``error`` is where each endpoint has its own."""


def complete_endpoints(config: Config, choices: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose ``endpoints`` have their residual errors written out: that of an endpoint that
    says none is ``error``.

    :param choices: what ``error: NAME`` of an endpoint stands for.
    :raises InputError: options that are unknown or do not fit together.
    """
    given = config["endpoints"]
    if given is None:
        return dict(config)
    if not isinstance(given, Mapping) or not given:
        raise InputError(
            f"endpoints is {shown(given)}; expected null, or names and options, as in {_EXAMPLE}"
        )
    found = {str(name): _checked(str(name), options, config, choices) for name, options in given.items()}
    told = [told_by(one) for one in found.values()]
    if len({column for column, _ in told}) > 1:
        raise InputError("endpoints: expected one column that tells all of them apart (dvid, cmt or column)")
    if len(told) > 1 and told[0][0] is None:
        raise InputError(f"endpoints.{next(iter(found))}: expected dvid, cmt or column, as in {_EXAMPLE}")
    if len({str(value) for _, value in told}) < len(told):
        raise InputError("endpoints: two are told by the same value; expected one endpoint for each")
    _check_label(config, found)
    _check_first(config, found)
    return {**config, "endpoints": found}


def _check_label(config: Config, found: Mapping[str, Any]) -> None:
    """What a fit's error is called is not an error that no endpoint has."""
    if config["error"].get("_target_") == OWN:
        return
    if all(options["error"] != config["error"] for options in found.values()):
        raise InputError("error is that of no endpoint, as each has its own; expected error=endpoints")


def _check_first(config: Config, found: Mapping[str, Any]) -> None:
    """The first is what else is said of levels."""
    (name, first), *_ = found.items()
    level = (config["dataset"].get("units") or {}).get("level")
    if level is not None and first.get("unit") not in (None, level):
        raise InputError(
            f"endpoints.{name}.unit is {first['unit']!r}; expected {level} (dataset.units.level)"
        )


def told_by(endpoint: Config) -> tuple[str | None, Any]:
    """The column that tells observations of an endpoint, and its value there; None where all are."""
    for role in ("dvid", "cmt"):
        if endpoint.get(role) is not None:
            return role, endpoint[role]
    return endpoint.get("column"), endpoint.get("value")


def _checked(name: str, options: object, config: Config, choices: Mapping[str, Any]) -> dict[str, Any]:
    where = f"endpoints.{name}"
    if not name.isidentifier():
        raise InputError(f"endpoints has {name!r}; expected names of letters, digits and _, as in cp")
    if not isinstance(options, Mapping):
        raise InputError(f"{where} is {shown(options)}; expected its options, as in {_EXAMPLE}")
    for key in options:
        if key not in _OPTIONS:
            raise InputError(f"{where}.{key}: no such option; expected some of {', '.join(_OPTIONS)}")
    told = [key for key in ("dvid", "cmt", "column") if options.get(key) is not None]
    if len(told) > 1 or ("column" in told) != (options.get("value") is not None):
        raise InputError(f"{where}: expected one of dvid, cmt, or column and value")
    _check_kinds(where, options)
    error = _error(where, options, config, choices)
    return {**options, "output": options.get("output", "central"), "error": error}


def _check_kinds(where: str, options: Config) -> None:
    for key in ("dvid", "cmt", "value"):
        value = options.get(key)
        if value is not None and (not isinstance(value, _PLAIN) or isinstance(value, bool)):
            raise InputError(f"{where}.{key} is {shown(value)}; expected a number or a text")
    for key in ("column", "output", "unit"):
        value = options.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise InputError(f"{where}.{key} is {shown(value)}; expected a text")
    over = options.get("over")
    if isinstance(over, str) and over.strip():  # a column
        pass
    elif over is not None:
        number(f"{where}.over", over, above=0)
    if options.get("size") is not None:
        number(f"{where}.size", options["size"], above=0)


def _error(where: str, options: Config, config: Config, choices: Mapping[str, Any]) -> dict[str, Any]:
    """The residual error of an endpoint, written out."""
    given = options.get("error")
    if given is None:
        if config["error"].get("_target_") == OWN:
            raise InputError(f"{where}.error: is missing, as error=endpoints says that each has its own")
        return dict(config["error"])
    if isinstance(given, Mapping):
        if "_target_" not in given:
            raise InputError(
                f"{where}.error._target_: is missing; expected the name of a class, or error: NAME"
            )
        return dict(given)
    one_of(f"{where}.error", given, tuple(choices))
    found = OmegaConf.create(
        {"error": choices[str(given)], "dataset": {"logged": config["dataset"]["logged"]}}
    )
    resolved = OmegaConf.to_container(found.error, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
