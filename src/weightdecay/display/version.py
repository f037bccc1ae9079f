"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version; "0+unknown" in a source tree that is not installed."""
    try:
        return version("weightdecay")
    except PackageNotFoundError:
        return "0+unknown"
