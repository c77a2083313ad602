"""Names of compartments and parameters, as a configuration and a rate function have them."""

from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import Any, Protocol

from medcm_cli.checks import one_of, whole
from medcm_cli.errors import InputError
from medcm_cli.pk.dosing import DoseParameters
from medcm_cli.pk.neural import Term
from medcm_cli.pk.rates import Function, Written, name_of
from medcm_cli.pk.trial import states_of


class Named(DoseParameters, Protocol):
    """A model given by a rate function, as this module sees it."""

    @property
    def rate(self) -> Function: ...
    @property
    def compartments(self) -> int | Sequence[str] | None: ...


def names(option: str, names: Sequence[str]) -> tuple[str, ...]:
    """:raises InputError: what cannot be written as ``p.NAME``, or stands there twice."""
    for name in names:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_") or iskeyword(name):
            raise InputError(f"{option} has {name!r}; expected names as Python has them, as in CL")
    if len(set(names)) < len(names):
        raise InputError(f"{option} is {list(names)}; expected each name once")
    return tuple(names)


def group(option: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{option} is {value!r}; expected a group, {{}} for none")
    return value


def states(pk: Named, parameters: tuple[str, ...], terms: tuple[Term, ...]) -> tuple[str, ...]:
    """The names of its compartments. :raises InputError: they are not those that its rate gives."""
    given = pk.compartments
    if given is None or isinstance(given, int):
        if given is not None:
            whole("pk.compartments", given, 1)
        groups = [pk.lag, pk.bioavailability, pk.durations]
        of_doses = [name for group in groups if isinstance(group, Mapping) for name in group.values()]
        all_names = tuple(dict.fromkeys((*parameters, *(n for n in of_doses if isinstance(n, str)))))
        found = states_of(Written(pk.rate, (), all_names, terms))
        if given is not None and len(found) != given:
            raise InputError(
                f"pk.compartments is {given!r}; {name_of(pk.rate)} gives {len(found)}: {', '.join(found)}"
            )
        return names("pk.compartments", found)
    if isinstance(given, str) or not given:
        raise InputError(f"pk.compartments is {given!r}; expected names, as in [central], or their number")
    return names("pk.compartments", given)


def place(option: str, value: object, states: tuple[str, ...]) -> int:
    """A compartment, from 1."""
    if isinstance(value, str):
        one_of(option, value, states)
        return 1 + states.index(value)
    return whole(option, value, 1, len(states), limit="pk.compartments")


def by_number(mapping: object, states: tuple[str, ...]) -> Any:
    """Compartments of dose parameters by their number; what is not one is refused by ``dosing``."""
    if not isinstance(mapping, Mapping):
        return mapping
    return {1 + states.index(key) if key in states else key: name for key, name in mapping.items()}
