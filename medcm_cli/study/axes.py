"""Which folds and replicates a job asks for: its fits are all combinations of them. Loads no torch."""

import itertools
from collections.abc import Iterable, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from medcm_cli.checks import whole
from medcm_cli.errors import InputError
from medcm_cli.study.identity import Config

_MOST_FITS = 1_000_000


def axis(name: str, value: object) -> list[int]:
    """The values of a batched axis: an int, a list, or Hydra's sweep syntax such as ``range(1,21)`` or
    ``1,2,5``."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        values = list(value)
    else:
        try:
            override = OverridesParser.create().parse_override(f"{name}={value}")
            given = override.sweep_iterator() if override.is_sweep_override() else override.value()
            if isinstance(given, Iterable) and not isinstance(given, str):
                values = list(itertools.islice(given, _MOST_FITS + 1))
            else:
                values = [given]
        except HydraException as error:
            raise InputError(f"{name}={value}: {' '.join(str(error).split())}") from error
    try:
        numbers = [int(v) for v in values]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if not numbers or any(str(n) != str(v) for n, v in zip(numbers, values, strict=True)) or min(numbers) < 1:
        raise InputError(
            f"{name}={value}: expected whole numbers from 1: {name}=3, {name}=[1,2] or {name}='range(1,21)'"
        )
    if len(numbers) > _MOST_FITS:
        raise InputError(f"{name}={value}: expected at most {_MOST_FITS} of them")
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{name}={value}: a number stands there twice")
    return numbers


def folds_of(config: Config) -> dict[int, dict[str, int]]:
    """The folds that a configuration asks for: number, from 1, of a fold and of its random stream -> what it
    is called, ``fold`` or, in a nested split, ``outer`` and ``inner``.

    :raises InputError: an axis that the split has not.
    """
    if "inner_folds" not in config["split"]:
        for name in ("outer", "inner"):
            if config[name] is not None:
                raise InputError(f"{name}={config[name]}: this split has fold; only split=nested has {name}")
        return {fold: {"fold": fold} for fold in axis("fold", config["fold"])}
    if axis("fold", config["fold"]) != [1]:
        raise InputError(f"fold={config['fold']}: split=nested has outer and inner in place of fold")
    most = whole("split.inner_folds", config["split"]["inner_folds"], 2)
    outer, inner = (axis(name, 1 if config[name] is None else config[name]) for name in ("outer", "inner"))
    if max(inner) > most:
        raise InputError(f"inner={max(inner)}: expected 1 to {most}, the number of inner folds")
    return {(o - 1) * most + i: {"outer": o, "inner": i} for o, i in itertools.product(outer, inner)}
