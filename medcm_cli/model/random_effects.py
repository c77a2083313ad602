"""Random effects: which parameters vary between subjects, and Omega from unconstrained values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from medcm_cli.checks import one_of
from medcm_cli.errors import InputError
from medcm_cli.model.coefficients import Coefficient
from medcm_cli.model.initial import constant, positive_init
from medcm_cli.model.rows import Row, correlation_row, row_of
from medcm_cli.numerics.streams import Stream, per_fit
from medcm_cli.numerics.triangular import Lower, diagonal, lower_from_raw

STRUCTURES = ("full", "diagonal")


@dataclass(frozen=True)
class RandomEffects:
    """Which parameters vary between subjects: eta ~ N(0, Omega), z = zeta exp(eta). ``names`` in the order
    of Omega; ``structure`` full estimates its correlations, diagonal has none, and blocks, of names, have
    those within each. ``fixed`` is Omega where it is known, and not estimated; ``given``: what is said of
    single omegas and correlations, by name (``rows.read_initial``).

    :raises InputError: another structure, or a fixed Omega that does not fit or is not positive definite.
    """

    names: tuple[str, ...]
    structure: str | Sequence[Sequence[str]] = "full"
    fixed: Sequence[Sequence[float]] | None = None
    given: Mapping[str, Coefficient] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.structure, str):
            one_of("omega", self.structure, STRUCTURES)
        else:
            self._check_blocks(self.structure)
        if self.fixed is not None and not _is_covariance(self.fixed, len(self.names)):
            raise InputError(
                f"fixed.omega is {self.fixed!r}: expected a positive definite matrix with a row for each of "
                f"{', '.join(self.names)}"
            )
        if self.given and self.fixed is not None:
            raise InputError(f"initial.{min(self.given)}: fixed.omega is all of Omega; leave one out")
        pairs = {self.correlation(i, j): (i, j) for i, j in self.pairs}
        for name in self.given:
            if name.startswith("rho_") and name not in pairs:
                raise InputError(f"initial.{name}: omega={self.structure!r} has no such correlation")
            if name.startswith("rho_") and not self._plain(*pairs[name]):
                raise InputError(
                    f"initial.{name}: can be said of a correlation with the first random effect of a block, "
                    "or of all with fixed.omega"
                )

    def _check_blocks(self, blocks: Sequence[Sequence[str]]) -> None:
        blocks = blocks if isinstance(blocks, list | tuple) else []
        listed = [name for block in blocks if isinstance(block, list | tuple) for name in block]
        plain = all(isinstance(block, list | tuple) and block for block in blocks)
        if not plain or not listed or len(set(listed)) < len(listed) or set(listed) - set(self.names):
            raise InputError(
                f"omega is {self.structure!r}; expected full, diagonal, or blocks of random effects, each in "
                f"one of them, as in [[{', '.join(self.names[:2])}]]; they are {', '.join(self.names)}"
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
        return f"rho_{self.names[j]}_{self.names[i]}"

    def _plain(self, i: int, j: int) -> bool:
        """Whether what is trained of a correlation is that alone, and of no partial one."""
        return next(block for block in self.blocks if i in block)[0] == j

    @property
    def free(self) -> list[int]:
        """Positions of the random effects whose omega is estimated."""
        if self.fixed is not None:
            return []
        return [i for i, name in enumerate(self.names) if self._known(f"omega_{name}") is None]

    @property
    def free_pairs(self) -> list[tuple[int, int]]:
        """Those of ``pairs`` whose correlation is estimated."""
        if self.fixed is not None:
            return []
        return [pair for pair in self.pairs if self._known(self.correlation(*pair)) is None]

    def _known(self, name: str) -> float | None:
        given = self.given.get(name)
        return None if given is None or given.estimated else given.begin

    def init(self, streams: Sequence[Stream], dtype: torch.dtype) -> dict[str, Tensor]:
        """Raw values (K, B) and, with correlations, (K (K - 1) / 2, B): omega ~ N(0.1, 0.025) above 0, raw
        correlation ~ N(0, 0.1), but where they are said to begin; none of what is known."""
        values, omegas, pairs = {}, len(self.free), (len(self.free_pairs),)
        if omegas:
            values["omega"] = positive_init(streams, "omega", omegas, dtype)
        if pairs[0]:
            values["correlation"] = raw_correlation_init(streams, "correlation", pairs, dtype)
        return values

    def rows(self) -> list[Row]:
        """What is trained of omegas and correlations; of these, those whose trained number is theirs
        alone."""
        omegas = (self.given.get(f"omega_{self.names[i]}") for i in self.free)
        found = [row_of("omega", place, given) for place, given in enumerate(omegas)]
        pairs = ((pair, self.given.get(self.correlation(*pair))) for pair in self.free_pairs)
        return found + [
            correlation_row(place, given) for place, (pair, given) in enumerate(pairs) if self._plain(*pair)
        ]

    def cholesky(self, values: Mapping[str, Tensor]) -> Lower:
        """Cholesky factor of Omega, entries (B,)."""
        if self.fixed is not None:
            matrix = torch.tensor(self.fixed, dtype=torch.float64, device="cpu")
            factor = torch.linalg.cholesky(matrix).tolist()
            return [[constant(values, entry) for entry in row[: i + 1]] for i, row in enumerate(factor)]
        if not self.given:
            scale = functional.softplus(values["omega"]).unbind(0)
            if not self.pairs:
                return diagonal(scale)
            return lower_from_raw(scale, values["correlation"].unbind(0), self.pairs)
        return self._partly_known(values)

    def _partly_known(self, values: Mapping[str, Tensor]) -> Lower:
        """``cholesky`` where some omegas or correlations may be known."""
        omegas = iter(functional.softplus(values["omega"]).unbind(0) if self.free else ())
        known = [self._known(f"omega_{name}") for name in self.names]
        scale = [next(omegas) if value is None else constant(values, value) for value in known]
        if not self.pairs:
            return diagonal(scale)
        raws = iter(values["correlation"].unbind(0) if self.free_pairs else ())
        rhos = [self._known(self.correlation(*pair)) for pair in self.pairs]
        raw = [next(raws) if rho is None else constant(values, math.atanh(rho)) for rho in rhos]
        return lower_from_raw(scale, raw, self.pairs)


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
