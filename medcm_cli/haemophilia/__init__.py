"""Haemophilia A: units, covariate graph, imputation, virtual patients and synthetic cohorts. No other room
knows a disease."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medcm_cli.haemophilia.virtual import TrueParameters

__all__ = ["TrueParameters"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from medcm_cli.haemophilia import virtual  # torch, which what only reads records need not wait for

    globals()[name] = found = getattr(virtual, name)
    return found
