"""How an event table is to be read: what its columns are, and what is allowed in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medcm_cli.checks import flag, number, one_of, shown
from medcm_cli.data.endpoints import Selector
from medcm_cli.data.names import ROLES
from medcm_cli.errors import InputError
from medcm_cli.quantities import HOUR

BLQ = ("M1", "M3", "M4")
OVER_TIME = ("constant", "record", "mean", "first")


@dataclass(frozen=True)
class Format:
    """How a file is to be read.

    ``columns`` role -> column, None of a role that no column has; ``keep`` column -> values of the rows to
    keep; ``dialect``: what is said of how the file is written (``medcm_cli.data.dialect``);
    ``bolus_duration`` of a dose with an amount alone, 0 (the default) at once; ``predose_observations``:
    ``error`` refuses an observation before the subject's first dose, where the model predicts exactly zero,
    ``keep`` allows it; ``over_time`` covariate -> what a covariate that changes means: ``record`` the value
    in force at each record, ``mean`` or ``first`` of the subject, ``constant`` (the default) refuses it;
    ``texts`` covariate -> the numbers that its texts stand for; ``optional``: covariates that may be
    missing, NaN then; ``forward``: those that rows may lack which others of the subject have; ``labels``:
    columns whose text is kept, one for each subject; ``spare``: covariates that nothing depends on, read
    where that can be done; ``limits``: covariate -> its least and greatest value; ``options``: covariate ->
    the path below ``dataset`` of the option that names its column, where that is not its own.
    ``patients``: to be predicted and not trained on. They need no observation, nor, without one, a dose; a
    negative level is refused; and additional doses after a subject's last record are given ``until``, in
    the file's time (all of them by default). ``time_unit``: of TIME and all that is counted in it.
    ``logged``: DV and limits are natural logarithms of levels. ``blq``: M1 leaves out observations below the
    limit of quantification, M3 and M4 keep them. ``endpoints``: which observations are of each, where there
    are several; ``group``: a column that tells subjects of one id apart; ``abscissa``: the column that
    observations depend on in place of time, of a table without doses. ``by_occasion``: the column OCC has to
    be there, and parts a subject's record in regimes as a covariate that changes does. ``values``: column ->
    id -> the value that its rows have, of a column that the file does not have itself.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    keep: Mapping[str, Sequence[object]] = field(default_factory=dict)
    dialect: Mapping[str, object] = field(default_factory=dict)
    bolus_duration: float = 0.0
    predose_observations: str = "error"
    over_time: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    forward: frozenset[str] = frozenset()
    labels: tuple[str, ...] = ()
    spare: frozenset[str] = frozenset()
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    patients: bool = False
    until: float = np.inf
    time_unit: str = HOUR
    logged: bool = False
    blq: str = "M3"
    endpoints: Sequence[Selector] = ()
    group: str | None = None
    abscissa: str | None = None
    by_occasion: bool = False
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(ROLES))
        if unknown:
            raise InputError(f"dataset.columns: {unknown[0]!r}; expected some of {', '.join(ROLES)}")
        for role, name in self.columns.items():
            if name is not None and (not isinstance(name, str) or not name):
                raise InputError(
                    f"dataset.columns.{role} is {name!r}; expected the name of a column, or null"
                )
        for name, values in self.keep.items():
            plain = isinstance(values, Sequence) and all(isinstance(v, str | int | float) for v in values)
            if not plain or isinstance(values, str) or not values:
                raise InputError(
                    f"dataset.keep.{name} is {shown(values)}; expected a list of the values to keep"
                )
        flag("dataset.logged", self.logged)
        one_of("dataset.blq", self.blq, BLQ)
        one_of("dataset.predose_observations", self.predose_observations, ("error", "keep"))
        number("dataset.bolus_duration", self.bolus_duration, least=0, unit=self.time_unit, most=10_000)
        for name, rule in self.over_time.items():
            one_of(f"dataset.over_time.{name}", rule, OVER_TIME)
