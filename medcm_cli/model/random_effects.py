"""Random effects: which parameters vary between subjects, or between a subject's occasions, and their
covariance from unconstrained values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import one_of
from medcm_cli.errors import InputError
from medcm_cli.model.coefficients import Coefficient
from medcm_cli.model.distributions import EXPONENTIAL, Additive, BoxCox, Distribution
from medcm_cli.model.initial import constant, positive_init
from medcm_cli.model.rows import Row, correlation_row, raws_of, row_of
from medcm_cli.numerics.streams import Stream, per_fit
from medcm_cli.numerics.triangular import Lower, cholesky, diagonal, lower_from_raw, raw_from_lower

STRUCTURES = ("full", "diagonal")
OMEGA, PI = "omega", "pi"
"""The covariance between subjects, and that between the occasions of one."""
SIGMA = "sigma"
"""The random effect of the residual error: a subject's sds are exp(eta) times the population's."""
_SHRUNK = 1 - 1e-6
MOST_CORRELATED = math.atanh(_SHRUNK)
"""The largest raw correlation of a covariance that is singular to rounding."""


@dataclass(frozen=True)
class RandomEffects:
    """Which parameters vary between subjects: eta ~ N(0, Omega), z = zeta exp(eta), or as ``distributions``
    have it. ``names`` in the order of Omega; ``structure`` full estimates its correlations, diagonal has
    none, and blocks, of names, have those within each. ``fixed`` is Omega where it is known, and not
    estimated; ``given``: what is said of single omegas and correlations, by name (``rows.read_initial``).
    ``of`` pi: between the occasions of a subject, kappa ~ N(0, Pi), in the same way.

    :raises InputError: another structure, or a fixed Omega that does not fit or is not positive definite.
    """

    names: tuple[str, ...]
    structure: str | Sequence[Sequence[str]] = "full"
    fixed: Sequence[Sequence[float]] | None = None
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    given: Mapping[str, Coefficient] = field(default_factory=dict)
    of: str = OMEGA

    def __post_init__(self) -> None:
        if isinstance(self.structure, str):
            one_of(self._option, self.structure, STRUCTURES)
        else:
            self._check_blocks(self.structure)
        if self.fixed is not None and not _is_covariance(self.fixed, len(self.names)):
            raise InputError(
                f"fixed.{self.of} is {self.fixed!r}: expected a positive definite matrix with a row for "
                f"each of {', '.join(self.names)}"
            )
        if self.given and self.fixed is not None:
            raise InputError(f"initial.{min(self.given)}: fixed.{self.of} is all of it; leave one out")
        pairs = {self.correlation(i, j): (i, j) for i, j in self.pairs}
        for name in self.given:
            if name.startswith("rho_") and name not in pairs:
                raise InputError(f"initial.{name}: {self._option}={self.structure!r} has no such correlation")
            if name.startswith("rho_") and not self._plain(*pairs[name]):
                raise InputError(
                    f"initial.{name}: can be said of a correlation with the first random effect of a block, "
                    f"or of all with fixed.{self.of}"
                )

    @property
    def _option(self) -> str:
        return "omega" if self.of == OMEGA else "occasions.structure"

    @property
    def raw_correlation(self) -> str:
        """What raw correlations are called among unconstrained values; raw sds are called ``of``."""
        return "correlation" if self.of == OMEGA else f"{self.of}_correlation"

    @property
    def sds(self) -> list[str]:
        """Names of standard deviations in results: omega_1 .., of Pi by the parameters, pi_CL .."""
        numbered = self.of == OMEGA
        return [f"{self.of}_{i + 1 if numbered else name}" for i, name in enumerate(self.names)]

    @property
    def rhos(self) -> list[str]:
        """Names of the correlations in results: rho_21 .., of Pi rho_pi_CL_V1 .."""
        if self.of == OMEGA:
            return [f"rho_{i + 1}{j + 1}" for i, j in self.pairs]
        return [self.correlation(*pair) for pair in self.pairs]

    def reported(self, covariance: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """Standard deviations and correlations of a covariance by their names in results."""
        sd = [row[place].sqrt() for place, row in enumerate(covariance)]
        found = dict(zip(self.sds, sd, strict=True))
        for name, (i, j) in zip(self.rhos, self.pairs, strict=True):
            found[name] = covariance[i][j] / (sd[i] * sd[j])
        return found

    def _check_blocks(self, blocks: Sequence[Sequence[str]]) -> None:
        blocks = blocks if isinstance(blocks, list | tuple) else []
        listed = [name for block in blocks if isinstance(block, list | tuple) for name in block]
        plain = all(isinstance(block, list | tuple) and block for block in blocks)
        if not plain or not listed or len(set(listed)) < len(listed) or set(listed) - set(self.names):
            raise InputError(
                f"{self._option} is {self.structure!r}; expected full, diagonal, or blocks of random "
                f"effects, each in one of them, as in [[{', '.join(self.names[:2])}]]; they are "
                f"{', '.join(self.names)}"
            )

    @property
    def blocks(self) -> list[list[int]]:
        """Positions of the random effects that are correlated with one another."""
        everyone = list(range(len(self.names)))
        if self.structure == "full":
            return [everyone]
        given = [] if isinstance(self.structure, str) else self.structure
        found = [sorted(self.names.index(name) for name in block) for block in given]
        return found + [[place] for place in everyone if not any(place in block for block in found)]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Positions (i, j), i > j, of the estimated correlations, row by row; none where Omega is
        diagonal."""
        return sorted((i, j) for block in self.blocks for i in block for j in block if j < i)

    def correlation(self, i: int, j: int) -> str:
        """What the correlation of the random effects at positions i > j is called."""
        kind = "rho" if self.of == OMEGA else f"rho_{self.of}"
        return f"{kind}_{self.names[j]}_{self.names[i]}"

    def _plain(self, i: int, j: int) -> bool:
        """Whether what is trained of a correlation is that alone, and of no partial one."""
        return next(block for block in self.blocks if i in block)[0] == j

    @property
    def free(self) -> list[int]:
        """Positions of the random effects whose omega is estimated."""
        if self.fixed is not None:
            return []
        return [i for i, name in enumerate(self.names) if self._known(f"{self.of}_{name}") is None]

    @property
    def free_pairs(self) -> list[tuple[int, int]]:
        """Those of ``pairs`` whose correlation is estimated."""
        if self.fixed is not None:
            return []
        return [pair for pair in self.pairs if self._known(self.correlation(*pair)) is None]

    def _known(self, name: str) -> float | None:
        given = self.given.get(name)
        return None if given is None or given.estimated else given.begin

    @property
    def parameters(self) -> list[str]:
        """Those that are of parameters, and not of the residual error."""
        return [name for name in self.names if name != SIGMA]

    @property
    def place_of_sigma(self) -> int | None:
        """Where the random effect of the residual error stands, if there is one."""
        return self.names.index(SIGMA) if SIGMA in self.names else None

    @property
    def sizes(self) -> list[float] | None:
        """What each random effect is counted in where it is trained; None where that is 1 of all."""
        found = [self.distributions[n].size if n in self.distributions else 1.0 for n in self.names]
        return found if any(size != 1 for size in found) else None

    def units(self, parameters: Mapping[str, str]) -> list[str]:
        """The unit of each random effect, which is that of its parameter where it is added to that, else
        none (-).

        :param parameters: name -> unit, as far as they are known.
        """
        added = [isinstance(self.distributions.get(name), Additive) for name in self.names]
        return [
            parameters.get(name, "-") if adds else "-" for name, adds in zip(self.names, added, strict=True)
        ]

    @property
    def _shapes(self) -> dict[str, Coefficient]:
        """Parameter -> the shape of its distribution."""
        return {name: of.shape for name, of in self.distributions.items() if isinstance(of, BoxCox)}

    def shapes(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The shapes of distributions that are estimated, by name, (B,)."""
        found = {of.name: of.value(values) for of in self._shapes.values() if of.trained in values}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def individual(self, zeta: Mapping[str, Tensor], eta: Sequence[Tensor]) -> dict[str, Tensor]:
        """Individual parameters in place of those that vary, without shapes of distributions.

        :param zeta: with ``shapes``. :param eta: (S, N, B) per random effect.
        """
        return self.shifted(zeta, dict(zip(self.names, eta, strict=True)))

    def shifted(self, zeta: Mapping[str, Tensor], shifts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same, from what the random effects of each parameter add up to."""
        shifted = {
            name: self._of(name).individual(zeta[name], shift, self._shape(name, zeta))
            for name, shift in shifts.items()
            if name != SIGMA
        }
        shapes = [of.name for of in self._shapes.values()]
        return {name: z for name, z in {**zeta, **shifted}.items() if name not in shapes}

    def slope(self, name: str, zeta: Mapping[str, Tensor], shift: Tensor | None) -> Tensor | None:
        """The derivative of the logarithm of a parameter in its random effects, zero where ``shift`` is None;
        None where that is 1."""
        if name not in self.distributions:
            return None
        effect = torch.zeros_like(zeta[name]) if shift is None else shift
        return self._of(name).slope(zeta[name], effect, self._shape(name, zeta))

    def centres(self, zeta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the parameters whose random effect is added to a function g of their typical value
        (``Distribution.centre``), which does not change in time: g(zeta), (1, N, B) or (B,)."""
        found = {name: self._of(name).centre(zeta[name]) for name in self.names if name in zeta}
        return {name: at for name, at in found.items() if at is not None and at.ndim <= 3}

    def reach(
        self, zeta: Mapping[str, Tensor], sds: Sequence[Tensor]
    ) -> list[tuple[Tensor | float, Tensor | float]]:
        """From where to where modes of each random effect are searched, whose ``sds`` are these."""
        return [
            self._of(name).reach(self._shape(name, zeta), sd)
            for name, sd in zip(self.names, sds, strict=True)
        ]

    def _of(self, name: str) -> Distribution:
        return self.distributions.get(name, EXPONENTIAL)

    def _shape(self, name: str, zeta: Mapping[str, Tensor]) -> Tensor | float:
        known = self._shapes.get(name)
        return 1.0 if known is None else zeta[known.name] if known.estimated else known.begin

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Raw values (K, B) and, with correlations, (K (K - 1) / 2, B): omega ~ N(0.1, 0.025) above 0, raw
        correlation ~ N(0, 0.1), but where they are said to begin, and none of what is known; and shapes of
        distributions."""
        estimated = [of.trained for of in self._shapes.values() if of.estimated]
        values = {name: torch.zeros(len(streams), dtype=dtype, device="cpu") for name in estimated}
        omegas, pairs = len(self.free), (len(self.free_pairs),)
        if omegas:
            values[self.of] = positive_init(streams, self.of, omegas, dtype)
        if pairs[0]:
            name = self.raw_correlation
            values[name] = raw_correlation_init(streams, name, pairs, dtype)
        return values

    def rows(self) -> list[Row]:
        """What is trained of omegas and correlations; of these, those whose trained number is theirs
        alone."""
        omegas = (self.given.get(f"{self.of}_{self.names[i]}") for i in self.free)
        sizes = self.sizes or [1.0] * len(self.names)
        found = [
            row_of(self.of, place, given, sizes[i])
            for place, (i, given) in enumerate(zip(self.free, omegas, strict=True))
        ]
        pairs = ((pair, self.given.get(self.correlation(*pair))) for pair in self.free_pairs)
        return found + [
            correlation_row(self.raw_correlation, place, given)
            for place, (pair, given) in enumerate(pairs)
            if self._plain(*pair)
        ]

    def cholesky(self, values: Mapping[str, Tensor]) -> Lower:
        """Cholesky factor of Omega, entries (B,)."""
        if self.fixed is not None:
            matrix = torch.tensor(self.fixed, dtype=torch.float64, device="cpu")
            factor = torch.linalg.cholesky(matrix).tolist()
            return [[constant(values, entry) for entry in row[: i + 1]] for i, row in enumerate(factor)]
        omegas = iter(functional.softplus(values[self.of]).unbind(0) if self.free else ())
        known = [self._known(f"{self.of}_{name}") for name in self.names]
        sizes = self.sizes or [1.0] * len(known)
        scale = [
            (next(omegas) if size == 1 else next(omegas) * size) if value is None else constant(values, value)
            for value, size in zip(known, sizes, strict=True)
        ]
        if not self.pairs:
            return diagonal(scale)
        raws = iter(values[self.raw_correlation].unbind(0) if self.free_pairs else ())
        rhos = [self._known(self.correlation(*pair)) for pair in self.pairs]
        raw = [next(raws) if rho is None else constant(values, math.atanh(rho)) for rho in rhos]
        return lower_from_raw(scale, raw, self.pairs)

    @property
    def is_plain(self) -> bool:
        """Whether each block is estimated as a whole, or is a single omega."""
        if self.fixed is not None:
            return False
        free, pairs = self.free, self.free_pairs
        return all(
            len(block) == 1
            or (all(i in free for i in block) and all((i, j) in pairs for i in block for j in block if j < i))
            for block in self.blocks
        )

    def raws(self, covariance: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """The unconstrained values that have this covariance, (B,) each entry, as far as they are estimated;
        the opposite of ``cholesky``. One that is singular, or is so to rounding, has its correlations a
        little smaller. Of what ``is_plain`` only."""
        sd = [row[place].sqrt() for place, row in enumerate(covariance)]
        pairs = self.pairs
        correlation = [
            [
                _SHRUNK * covariance[i][j] / (sd[i] * sd[j]) if (i, j) in pairs else torch.zeros_like(sd[0])
                for j in range(i)
            ]
            + [torch.ones_like(sd[0])]
            for i in range(len(sd))
        ]
        _, raw = raw_from_lower(cholesky(correlation), _SHRUNK, pairs)
        sizes = self.sizes or [1.0] * len(sd)
        values = {self.of: raws_of(torch.stack([sd[i] / sizes[i] for i in self.free]))} if self.free else {}
        return values | ({self.raw_correlation: torch.stack(raw)} if raw else {})


def _is_covariance(matrix: Sequence[Sequence[float]], size: int) -> bool:
    try:
        m = torch.tensor(matrix, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError):
        return False
    fits = m.shape == (size, size) and bool(torch.isfinite(m).all()) and bool((m == m.mT).all())
    return fits and int(torch.linalg.cholesky_ex(m).info) == 0


def raw_correlation_init(
    streams: Sequence[Stream], purpose: str, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Raw correlations ~ N(0, 0.1): (*shape, B)."""
    return per_fit(streams, lambda g: g.normal(0.0, 0.1, shape), purpose, dtype)
