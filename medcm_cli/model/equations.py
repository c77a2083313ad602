"""Typical parameters by equations that are written down, alone or beside networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medcm_cli.checks import shown
from medcm_cli.errors import InputError
from medcm_cli.model.branches import Branch
from medcm_cli.model.coefficients import Coefficient, coefficient
from medcm_cli.model.networks import Network, scales_of
from medcm_cli.model.terms import TERMS, Described, Term
from medcm_cli.numerics.streams import Stream


@dataclass(frozen=True)
class Parameter:
    """``typical`` times the factors of ``terms`` and the effects of ``branches``."""

    typical: Coefficient
    terms: tuple[Term, ...]
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Equations(Network):
    """Each parameter is its typical value times one factor for each of its covariates (docs/methods.md,
    "Equations"). ``scales`` divides each covariate of a branch to about [0, 1]."""

    written: Mapping[str, Parameter]
    scales: Mapping[str, float]

    @classmethod
    def build(
        cls, equations: Mapping[str, Mapping[str, Any]], covariates: Mapping[str, Mapping[str, Any]]
    ) -> "Equations":
        """From configuration.

        :param equations: parameter -> ``typical``, and covariate -> its term, as in ``{typical: 4, weight:
            {power: 0.75}, age: {network: [12]}}``.
        :param covariates: the data set's description of each.
        :raises InputError: a covariate, term or coefficient that is not as expected.
        """
        if not isinstance(equations, Mapping) or not equations:
            raise InputError(
                f"network.equations is {shown(equations)}; expected one per parameter, as in "
                "+network.equations='{CL: {typical: 4, weight: {power: 0.75}}, V1: {typical: 50}}'"
            )
        scales, before = scales_of(covariates), list[Branch]()
        written = {}
        for name, options in equations.items():
            written[str(name)] = _parameter(str(name), options, covariates, before)
            before += written[str(name)].branches
        return cls(written, scales)

    @property
    def parameters(self) -> tuple[str, ...]:
        """See ``Network.parameters``."""
        return tuple(self.written)

    @property
    def inputs(self) -> tuple[str, ...]:
        """See ``Network.inputs``."""
        return tuple(dict.fromkeys(covariate for covariate, _ in self.effects))

    @property
    def effects(self) -> tuple[tuple[str, str], ...]:
        """See ``Network.effects``."""
        pairs = [
            (covariate, name)
            for name, of in self.written.items()
            for covariate in (*(t.covariate for t in of.terms), *(i for b in of.branches for i in b.inputs))
        ]
        return tuple(dict.fromkeys(pairs))

    @property
    def categories(self) -> dict[str, tuple[float, ...]]:
        """See ``Network.categories``."""
        return {t.covariate: t.categories for of in self.written.values() for t in of.terms if t.categories}

    @property
    def _estimated(self) -> list[Coefficient]:
        found = [c for of in self.written.values() for c in (of.typical, *_of_terms(of))]
        return [c for c in found if c.estimated]

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Initial values, fit dimension last: coefficients where they are said to begin, which is 0 of what
        is trained, (B,), and those of branches."""
        values = {c.trained: torch.zeros(len(streams), dtype=dtype, device="cpu") for c in self._estimated}
        for of in self.written.values():
            for branch in of.branches:
                values |= branch.init(streams, dtype)
        return values

    def typical(self, values: Mapping[str, Tensor], covariates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Network.typical``."""
        like = next(iter(values.values())) if values else next(iter(covariates.values()))
        zeta: dict[str, Tensor] = {}
        for name, of in self.written.items():
            start = of.typical.value(values)
            found = start if isinstance(start, Tensor) else like.new_full(like.shape[-1:], start)
            for term in of.terms:
                found = found * term.factor(values, covariates)
            for branch in of.branches:
                inputs = [covariates[covariate] / self.scales[covariate] for covariate in branch.inputs]
                found = found * branch.effects(values, inputs)[name]
            zeta[name] = found
        return zeta

    def coefficients(self, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str, bool]]:
        """See ``Network.coefficients``."""
        found = {}
        for of in self.written.values():
            for each in _of_terms(of):
                value = each.value(values)
                if isinstance(value, Tensor):
                    found[each.name] = value, each.unit, each.positive
        return found

    @property
    def named(self) -> dict[str, float]:
        """See ``Network.named``; not what a network beside it has the size of."""
        return {c.name: c.lower for c in self._named}

    @property
    def _named(self) -> list[Coefficient]:
        return [
            c
            for of in self.written.values()
            for c in (*(() if of.branches else (of.typical,)), *_of_terms(of))
        ]

    def values_of(self, values: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """See ``Network.values_of``."""
        return {c.name: c.value(values) for c in self._named}

    def with_initial(self, given: Mapping[str, Coefficient]) -> "Equations":
        """See ``Network.with_initial``; in place of what the equations say."""

        def changed(old: Coefficient) -> Coefficient:
            new = given.get(old.name)
            if new is None:
                return old
            if new.estimated and not old.estimated:
                raise InputError(
                    f"initial.{old.name}: the equation has it as known, {old.begin:g}; expected {{initial: "
                    "NUMBER} there, or {fixed: NUMBER} here"
                )
            low, high = max(new.lower, old.lower), min(new.upper, old.upper)
            return replace(old, begin=new.begin, estimated=new.estimated, lower=low, upper=high)

        written = {
            name: replace(
                of,
                typical=changed(of.typical),
                terms=tuple(replace(t, coefficients=tuple(map(changed, t.coefficients))) for t in of.terms),
            )
            for name, of in self.written.items()
        }
        return replace(self, written=written)


def _of_terms(of: Parameter) -> list[Coefficient]:
    return [c for term in of.terms for c in term.coefficients]


def _parameter(
    name: str, options: object, covariates: Mapping[str, Mapping[str, Any]], before: Sequence[Branch]
) -> Parameter:
    where = f"network.equations.{name}"
    if not isinstance(options, Mapping) or "typical" not in options:
        raise InputError(
            f"{where} is {shown(options)}; expected its typical value and a term per covariate, as in "
            "{typical: 4, weight: {power: 0.75}}"
        )
    terms, branches = list[Term](), list[Branch]()
    for covariate, option in options.items():
        if covariate == "typical":
            continue
        if covariate == "network" and covariate not in covariates:  # of several covariates
            joint = {"heads": [name], **(option if isinstance(option, Mapping) else {"inputs": option})}
            branches.append(Branch.build(joint, covariates, [*before, *branches], f"{where}.network"))
            continue
        described = _described(f"{where}.{covariate}", name, str(covariate), covariates)
        if not isinstance(option, Mapping) or len(option) != 1:
            raise InputError(f"{described.where} is {shown(option)}; expected one of {_KINDS}")
        ((kind, given),) = option.items()
        if kind == "network":
            branch = {"inputs": [covariate], "hidden": given, "heads": [name]}
            place = f"{described.where}.network"
            branches.append(Branch.build(branch, covariates, [*before, *branches], place))
        elif kind in TERMS:
            terms.append(TERMS[kind](described, given))
        else:
            raise InputError(f"{described.where}.{kind}: no such term; expected one of {_KINDS}")
    # What a branch multiplies by begins near 1, and its size is its own to learn.
    typical = coefficient(
        f"{where}.typical", name, options["typical"], known=bool(branches), lower=0.0, unit="see parameter"
    )
    if branches and typical.estimated:
        raise InputError(
            f"{where}.typical is estimated, and so is the size of the network beside it; say a number"
        )
    return Parameter(typical, tuple(terms), tuple(branches))


_KINDS = ", ".join((*TERMS, "network"))


def _described(
    where: str, parameter: str, covariate: str, covariates: Mapping[str, Mapping[str, Any]]
) -> Described:
    if covariate not in covariates:
        raise InputError(
            f"{where}: covariate {covariate!r} is not in the dataset, which has "
            f"{', '.join(covariates) or 'none'}"
        )
    entry = covariates[covariate]
    values = {str(text): float(code) for text, code in (entry.get("values") or {}).items()}
    return Described(
        where,
        parameter,
        covariate,
        scales_of(covariates)[covariate],
        float(entry["reference"]),
        str(entry.get("unit") or "-"),
        values,
    )
