"""What each backend can express, as a table that planning checks before a weight is read."""

from __future__ import annotations

from typing import Literal

from edgepack.errors import UnsupportedError
from edgepack.quant.schemes import FloatScheme, IntScheme, Scheme
from edgepack.spec import Frozen

BackendName = Literal["onnx"]


class Backend(Frozen):
    """A converter's abilities.

    Attributes:
        matrix_floats: float types that a matrix of a product may be stored in.
        gathered_floats: float types that a looked-up table may be stored in.
        bits: integer widths, for matrices and tables alike.
        min_block: smallest quantization block along K; blocks are powers of two.
    """

    name: BackendName
    title: str
    matrix_floats: tuple[str, ...]
    gathered_floats: tuple[str, ...]
    bits: tuple[int, ...]
    min_block: int

    def check(self, scheme: Scheme, *, what: str, multiplied: bool, gathered: bool) -> None:
        """Raise `UnsupportedError` if a tensor used in these ways cannot be stored as `scheme`."""
        if isinstance(scheme, IntScheme):
            if scheme.bits not in self.bits or scheme.block < self.min_block:
                widths = "/".join(map(str, self.bits))
                raise UnsupportedError(
                    f"{what}: scheme {scheme.name} is not possible in {self.title}: "
                    f"expected {widths} bits in blocks of at least {self.min_block}"
                )
            return
        for used, types in ((multiplied, self.matrix_floats), (gathered, self.gathered_floats)):
            if used and scheme.dtype not in types:
                raise UnsupportedError(
                    f"{what}: {scheme.dtype} is not possible in {self.title} for this use: "
                    f"expected {' or '.join(types)}, or an int scheme"
                )


# ONNX Runtime on CPU has no float16 product: a float16 matrix would be widened to float32 in RAM at load.
ONNX = Backend(
    name="onnx",
    title="ONNX",
    matrix_floats=("float32",),
    gathered_floats=("float32", "float16"),
    bits=(2, 4, 8),
    min_block=16,
)
BACKENDS: dict[str, Backend] = {"onnx": ONNX}
FLOAT32 = FloatScheme(dtype="float32")


def backend_named(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        UnsupportedError: there is none of that name; the known ones are listed.
    """
    if name not in BACKENDS:
        raise UnsupportedError(f"backend {name!r} is not known: expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name]
