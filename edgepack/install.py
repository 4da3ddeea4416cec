"""How edgepack and its extras are installed: what every error says, in the words of README and docs.

No package index has edgepack: its name alone installs nothing, so a way to install it names a clone or a wheel.
"""

from __future__ import annotations

from edgepack.version import __version__


def install_hint(extra: str) -> str:
    """The commands that install edgepack with `extra`, for the end of an error."""
    return (
        f"pip install -c constraints.txt '.[{extra}]' in a clone of edgepack, "
        f"or pip install 'edgepack-{__version__}-py3-none-any.whl[{extra}]' with its wheel"
    )


def not_installed(library: str | None, extra: str) -> str:
    """The error of a missing `library`, which `extra` brings."""
    return f"{library} is not installed: {install_hint(extra)}"
