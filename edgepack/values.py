"""Base of the values that travel between stages, and the array that most of them are computed from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

FloatArray = npt.NDArray[np.float32]


class Frozen(BaseModel):
    """Base of every value that travels between stages: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
