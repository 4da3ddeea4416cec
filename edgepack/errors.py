"""The one root error. Its text is what a user reads: what, where, expected, got, way out."""

from __future__ import annotations


class EdgepackError(Exception):
    """Input that edgepack cannot work with, or a choice that does not fit.

    The command line prints the message on one line and exits with 2. Library callers catch this class.
    """


class CheckpointError(EdgepackError):
    """A checkpoint that is missing, unreadable, corrupt or incomplete."""


class UnsupportedError(EdgepackError):
    """A model, recipe or option that a backend has no way to express."""


class PackageError(EdgepackError):
    """A package folder that is missing, incomplete, changed or refused."""
