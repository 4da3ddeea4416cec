"""A sensitivity file: what each group of tensors costs at each scheme, on one checkpoint and for one backend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgepack.calibration.layout import spec_sha256
from edgepack.checkpoint.fingerprint import checkpoint_fingerprint
from edgepack.checkpoint.folder import Checkpoint
from edgepack.errors import EdgepackError
from edgepack.model.spec import Component, ModelSpec
from edgepack.quant.recipes import Storage
from edgepack.reading import read_document, read_user_file
from edgepack.shown import printable
from edgepack.values import Frozen

WAY_OUT = "measure with `edgepack calibrate CHECKPOINT --calibration FILE --sensitivity FILE`"
_SHOWN_DIGITS = 12
Measured = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Choice(Frozen):
    """A way to store a group, and what it costs.

    Attributes:
        storage: the row of a recipe; tensors that cannot have it get what a plan gives them in its place.
        kl: mean KL(float32 || this) in nats with everything else in float32.
        error: squared error of the group's products by their squared size, summed over its matrices; None for tables
            and the head.
        measured: whether `kl` comes from a forward, and not from the KL of another scheme and both errors.
    """

    storage: Storage
    kl: Measured
    error: Measured | None = None
    measured: bool = False


class GroupCost(Frozen):
    """The choices of one group: see `edgepack.calibration.sensitivity.groups.Group`."""

    name: str
    kind: str
    component: Component
    tensors: tuple[str, ...]
    choices: tuple[Choice, ...] = Field(min_length=1)


class Sensitivity(Frozen):
    """All groups of a checkpoint.

    Attributes:
        spec_sha256, checkpoint_sha256: as in a calibration's header.
        calibration_sha256: of the file whose second moments weigh the errors.
        backend: whose schemes these are.
        text: ``builtin``, or the name of the file that was run.
        text_sha256: of its content.
        sequences, sequence_tokens: how much of it.
        positions: whose logits were compared, in all.
    """

    format: Literal["edgepack-sensitivity"] = "edgepack-sensitivity"
    version: Literal[1] = 1
    spec_sha256: str
    checkpoint_sha256: str
    calibration_sha256: str
    backend: str
    text: str
    text_sha256: str
    sequences: int
    sequence_tokens: int
    positions: int
    groups: tuple[GroupCost, ...]

    def require_for(self, checkpoint: Checkpoint, spec: ModelSpec, backend: str, path: Path) -> None:
        """Check that this, which `path` holds, was measured on `checkpoint`, read as `spec`, for `backend`.

        Raises:
            EdgepackError: it was not.
        """
        given = checkpoint_fingerprint(checkpoint)
        if self.checkpoint_sha256 != given:
            raise EdgepackError(
                f"{path}: a sensitivity of another checkpoint: expected fingerprint {_digits(given)} "
                f"({printable(str(checkpoint.path))}), got {_digits(self.checkpoint_sha256)}; {WAY_OUT}"
            )
        if self.spec_sha256 != spec_sha256(spec):
            raise EdgepackError(
                f"{path}: a sensitivity of this checkpoint as another spec: expected {_digits(spec_sha256(spec))}, "
                f"got {_digits(self.spec_sha256)}; {WAY_OUT}"
            )
        if self.backend != backend:
            raise EdgepackError(
                f"{path}: a sensitivity for backend {printable(self.backend)}: expected {backend}; "
                f"pass --to {printable(self.backend)}, or {WAY_OUT} --to {backend}"
            )


def _digits(sha256: str) -> str:
    return printable(sha256[:_SHOWN_DIGITS])


def read_sensitivity(path: str | Path) -> Sensitivity:
    """Read the file `path`.

    Raises:
        EdgepackError: it is missing, or no sensitivity of this version; the first wrong field is named.
    """
    path = Path(path)
    content = read_user_file(path, "sensitivity", WAY_OUT)
    return read_document(Sensitivity, content, f"sensitivity {path}", WAY_OUT)
