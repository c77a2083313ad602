"""medcm: experiments with mixed-effects deep compartment models.

For notebooks: ``load_study`` and ``predict`` do what ``medcm predict`` does (``medcm_cli.prediction``), and
``dose`` what ``medcm dose`` does (``medcm_cli.dosing``). They are loaded once they are asked for, since torch
takes seconds.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("medcm")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"

_LATER = {"load_study": "fitted", "predict": "prediction", "dose": "dosing"}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
