"""medcm: experiments with mixed-effects deep compartment models."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("medcm")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
