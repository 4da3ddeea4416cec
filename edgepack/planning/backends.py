"""What each backend can express, as a table that planning checks before a weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Literal, get_args

from edgepack.errors import UnsupportedError
from edgepack.quant.layout import FloatScheme, IntScheme, Scheme
from edgepack.shown import shown
from edgepack.values import Frozen

BackendName = Literal["onnx", "litert"]
RuntimeName = Literal["onnx", "litert", "litert-lm"]


class IntFormat(Frozen):
    """A family of integer schemes that a backend's operators take.

    Attributes:
        bits: widths.
        min_block: smallest block along K, a power of two; None where a scale covers a whole row.
        zero_point: whether zero points are possible.
        scale_dtypes: types of the scales.
    """

    bits: tuple[int, ...]
    min_block: int | None
    zero_point: bool
    scale_dtypes: tuple[str, ...]

    def covers(self, scheme: IntScheme) -> bool:
        """Whether `scheme` is one of these."""
        if (scheme.block is None) != (self.min_block is None):
            return False
        return (
            scheme.bits in self.bits
            and (scheme.block is None or scheme.block >= (self.min_block or 0))
            and (self.zero_point or not scheme.zero_point)
            and scheme.scale_dtype in self.scale_dtypes
        )

    def __str__(self) -> str:
        widths = "/".join(map(str, self.bits))
        blocks = "one scale a row" if self.min_block is None else f"in blocks of at least {self.min_block}"
        zeros = "" if self.zero_point else ", no zero point"
        return f"{widths} bits {blocks}{zeros} ({' or '.join(self.scale_dtypes)} scales)"


class Backend(Frozen):
    """A converter's abilities.

    Attributes:
        matrix_floats: names of the float schemes that a matrix of a product may be stored in.
        gathered_floats: names of those that a looked-up table may be stored in.
        matrix_ints, gathered_ints: integer schemes for the same two uses.
        fixed_lengths: whether context and prefill lengths are written into the graphs.
        converts_tokenizer: whether an export makes another tokenizer of the checkpoint's, which takes memory.
        converter: the module that emits for it: see `edgepack_converters.contract`.
        extra: what to install for that.
        runtimes: names of the runtimes that run its packages; the first is taken where none is asked for.
    """

    name: BackendName
    title: str
    matrix_floats: tuple[str, ...]
    gathered_floats: tuple[str, ...]
    matrix_ints: tuple[IntFormat, ...]
    gathered_ints: tuple[IntFormat, ...]
    converter: str
    extra: str
    runtimes: tuple[RuntimeName, ...]
    fixed_lengths: bool = False
    converts_tokenizer: bool = False

    @property
    def min_block(self) -> int:
        """Smallest block of a product's matrix."""
        return min(form.min_block for form in self.matrix_ints if form.min_block is not None)

    def runtime_for(self, name: str | None) -> RuntimeName:
        """The runtime called `name`, the first where there is no name.

        Raises:
            UnsupportedError: it does not run what is exported for this backend, or there is none of that name.
        """
        if name is None:
            return self.runtimes[0]
        runtime = runtime_named(name)
        if runtime not in self.runtimes:
            raise UnsupportedError(
                f"runtime {runtime} does not run what is exported for {self.name}: expected "
                f"{' or '.join(self.runtimes)}, or --to {backend_for(None, runtime).name}"
            )
        return runtime

    def check(self, scheme: Scheme, *, what: str, multiplied: bool, gathered: bool) -> None:
        """Raise `UnsupportedError` if a tensor used in these ways cannot be stored as `scheme`."""
        if isinstance(scheme, IntScheme):
            for used, forms in ((multiplied, self.matrix_ints), (gathered, self.gathered_ints)):
                if used and not any(form.covers(scheme) for form in forms):
                    raise UnsupportedError(
                        f"{what}: scheme {scheme.name} ({scheme.scale_dtype} scales) is not possible in {self.title}: "
                        f"expected {'; or '.join(map(str, forms))}"
                    )
            return
        for used, types in ((multiplied, self.matrix_floats), (gathered, self.gathered_floats)):
            if used and scheme.name not in types:
                raise UnsupportedError(
                    f"{what}: {scheme.name} is not possible in {self.title} for this use: "
                    f"expected {' or '.join(types)}, or an int scheme"
                )


_ONNX_INTS = (IntFormat(bits=(2, 4, 8), min_block=16, zero_point=True, scale_dtypes=("float32",)),)
# ONNX Runtime on CPU has no float16 product: a float16 matrix would be widened to float32 in RAM at load.
ONNX = Backend(
    name="onnx",
    title="ONNX",
    matrix_floats=("float32",),
    gathered_floats=("float32", "float16"),
    matrix_ints=_ONNX_INTS,
    gathered_ints=_ONNX_INTS,
    converter="edgepack_converters.onnx.emit",
    extra="onnx",
    runtimes=("onnx",),
)
# Products are what XNNPACK's dynamic-range kernels take; tables are unpacked by plain operators, so anything goes.
LITERT = Backend(
    name="litert",
    title="LiteRT",
    matrix_floats=("float32",),
    gathered_floats=("float32", "float16"),
    matrix_ints=(
        IntFormat(bits=(4,), min_block=32, zero_point=False, scale_dtypes=("float16",)),
        IntFormat(bits=(4, 8), min_block=None, zero_point=False, scale_dtypes=("float32",)),
    ),
    gathered_ints=(
        IntFormat(bits=(2, 4, 8), min_block=16, zero_point=True, scale_dtypes=("float32", "float16")),
        IntFormat(bits=(2, 4, 8), min_block=None, zero_point=True, scale_dtypes=("float32", "float16")),
    ),
    converter="edgepack_converters.litert.emit",
    extra="litert",
    runtimes=("litert", "litert-lm"),
    fixed_lengths=True,
    converts_tokenizer=True,
)
# `tflite` is what the file format of LiteRT's models is still called.
BACKENDS: dict[str, Backend] = {"onnx": ONNX, "litert": LITERT, "tflite": LITERT}
FLOAT32 = FloatScheme(dtype="float32")
DEFAULT_PREFILL_TOKENS = 128


def backend_named(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        UnsupportedError: there is none of that name; the known ones are listed.
    """
    if name not in BACKENDS:
        raise UnsupportedError(f"backend {shown(name)} is not known: expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def runtime_named(name: str) -> RuntimeName:
    """Return `name`, which is that of a runtime.

    Raises:
        UnsupportedError: there is none of that name; the known ones are listed.
    """
    known: tuple[RuntimeName, ...] = get_args(RuntimeName)
    for runtime in known:
        if runtime == name:
            return runtime
    raise UnsupportedError(f"runtime {shown(name)} is not known: expected one of {', '.join(known)}")


def backend_for(name: str | None, runtime: str | None = None) -> Backend:
    """The backend called `name`; where there is no name the one that `runtime` runs, else ONNX.

    Raises:
        UnsupportedError: one of the names is not known, or they do not go together.
    """
    if name is None:
        return next((backend for backend in BACKENDS.values() if runtime in backend.runtimes), ONNX)
    return backend_named(name)


def default_prefill(backend: Backend, context_tokens: int) -> tuple[int, ...]:
    """Lengths of the pieces of a prompt where nobody asks for any: 128, or the nearest that the backend can have."""
    longest = min(DEFAULT_PREFILL_TOKENS, context_tokens)
    if not backend.fixed_lengths:
        return (longest,)
    return (max(n for n in range(1, longest + 1) if context_tokens % n == 0 and not is_placeholder(n)),)


def is_placeholder(length: int) -> bool:
    """Whether LiteRT-LM takes `length` for a placeholder, which it rewrites: a prime of 11 or more."""
    return length >= 11 and all(length % factor for factor in range(2, isqrt(length) + 1))


def check_prefill(backend: Backend, prefill_tokens: Sequence[int], context_tokens: int) -> None:
    """Raise `UnsupportedError` unless pieces of these lengths fit into `context_tokens` and suit the backend."""
    for length in prefill_tokens:
        if not 1 <= length <= context_tokens:
            raise UnsupportedError(
                f"prefill of {length} tokens at once is not possible: expected 1 to {context_tokens}, the context"
            )
    if not backend.fixed_lengths:
        return
    if context_tokens < 2:
        raise UnsupportedError(
            "context of 1 token is not possible: LiteRT-LM needs one for the answer, expected 2 or more"
        )
    for what, length in (("context", context_tokens), *(("prefill", n) for n in prefill_tokens)):
        if is_placeholder(length):
            raise UnsupportedError(
                f"{what} of {length} tokens: LiteRT-LM takes a prime number for a placeholder; choose {length + 1}"
            )
    shortest = min(prefill_tokens)
    if context_tokens % shortest:
        raise UnsupportedError(
            f"context of {context_tokens} tokens is no multiple of the shortest prefill, {shortest}: LiteRT-LM could "
            f"not fill its end; choose --context {-(-context_tokens // shortest) * shortest}, or another --prefill"
        )
