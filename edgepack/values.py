"""Base of the values that travel between stages."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of every value that travels between stages: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
