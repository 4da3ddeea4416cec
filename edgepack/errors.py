"""The one root error. Its text is what a user reads: what, where, expected, got, way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgepack.shown import bounded, one_line
from edgepack.version import __version__


class EdgepackError(Exception):
    """Input that edgepack cannot work with, or a choice that does not fit.

    The command line prints the message on one line and exits with 2. Library callers catch this class.
    """

    def __init__(self, message: str) -> None:
        super().__init__(bounded(message))


class SettingError(EdgepackError):
    """A setting of a call that cannot be used; its message begins with the name of the setting.

    Attributes:
        setting: the parameter of the call, so that whoever filled it can say where the value stands.
        key: which entry of it, where it has several.
        problem: the message behind the name.
    """

    def __init__(self, setting: str, problem: str, *, key: str | None = None) -> None:
        super().__init__(f"{setting}{problem}")
        self.setting, self.problem, self.key = setting, problem, key


@contextmanager
def about(setting: str, *, key: str | None = None) -> Iterator[None]:
    """Whatever is refused inside is refused because of `setting`.

    Raises:
        SettingError: in place of the `EdgepackError`, whose message may begin with the name already.
    """
    try:
        yield
    except SettingError:
        raise
    except EdgepackError as error:
        text = str(error)
        rest = text.removeprefix(f"{setting} ")
        raise SettingError(setting, f": {text}" if rest == text else f" {rest}", key=key) from error


class CheckpointError(EdgepackError):
    """A checkpoint that is missing, unreadable, corrupt or incomplete."""


class UnsupportedError(EdgepackError):
    """A model, recipe or option that a backend has no way to express."""


class PackageError(EdgepackError):
    """A package folder that is missing, incomplete, changed or refused."""


class TextFileError(CheckpointError, PackageError):
    """A tokenizer, template or config file, which checkpoints and packages both have."""


def is_missing(error: ImportError, name: str) -> bool:
    """Whether `error` says that library `name` itself is not installed, and not that it, or a part, fails to load."""
    return isinstance(error, ModuleNotFoundError) and (error.name or name).partition(".")[0] == name.partition(".")[0]


def broken_library(error: Exception, name: str | None = None) -> EdgepackError:
    """What to raise for a library that is installed and cannot be loaded, with the reason that the system gives.

    Args:
        name: of the library, where `error` does not tell it.
    """
    library = name or (getattr(error, "name", None) or "").partition(".")[0] or "a library"
    reason = one_line(error, 500)
    return EdgepackError(f"{library} is installed but cannot be loaded: {reason}; install it again, or what is missing")


def install_hint(extra: str) -> str:
    """The commands that install edgepack with `extra`, for the end of an error, in the words of README and docs.

    No package index has edgepack: its name alone installs nothing, so a way to install it names a clone or a wheel.
    """
    return (
        f"pip install -c constraints.txt '.[{extra}]' in a clone of edgepack, "
        f"or pip install 'edgepack-{__version__}-py3-none-any.whl[{extra}]' with its wheel"
    )


def not_installed(library: str | None, extra: str) -> str:
    """The error of a missing `library`, which `extra` brings."""
    return f"{library} is not installed: {install_hint(extra)}"
