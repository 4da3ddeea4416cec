"""Fixtures of the whole suite: no test touches the user's caches, and tiny packages are exported once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.tiny import TinyPackages


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(tmp_path_factory.mktemp("cache")))
        # No test package has to survive a power cut, and waiting for a busy disk took most of the suite's time.
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def tiny_packages(tmp_path_factory: pytest.TempPathFactory) -> TinyPackages:
    """Call it with a name of `tests.support.tiny.NAMES`: a `Tiny` with model, checkpoint and package."""
    import torch

    from tests.support.tiny import TinyPackages

    torch.set_num_threads(1)
    return TinyPackages(tmp_path_factory.mktemp("tiny"))
