"""medcm: experiments with mixed-effects deep compartment models.

For notebooks: ``load_study``, ``predict`` and ``dose`` do what ``medcm predict`` and ``medcm dose`` do
(``medcm_cli.patients``). They are loaded once they are asked for, since torch takes seconds.
"""

from importlib import import_module

_LATER = ("load_study", "predict", "dose")


def __getattr__(name: str) -> object:
    if name == "__version__":
        return _version()
    if name in _LATER:
        return getattr(import_module(f"{__name__}.patients"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # which reads how mail is written

    try:
        return version("medcm")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"
