"""How each group of tensors may be stored by a backend: what a sensitivity measures and a mix chooses from."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.calibration.sensitivity.groups import Candidate, Group, groups_of
from edgepack.errors import UnsupportedError
from edgepack.model.spec import ModelSpec
from edgepack.planning.assign import fit
from edgepack.planning.backends import FLOAT32, Backend
from edgepack.quant import CALIBRATED, IntScheme, Rounding, Scheme, Storage

# From few bits to many, those of a width from large blocks to small. At 8 bits no rounding beats the nearest.
_SCHEMES: dict[str, tuple[IntScheme, ...]] = {
    "onnx": (
        IntScheme(bits=2, block=32, zero_point=True),
        *(IntScheme(bits=4, block=block, zero_point=True) for block in (256, 128, 64, 32)),
        IntScheme(bits=8, block=128),
    ),
    "litert": (
        *(IntScheme(bits=4, block=block, scale_dtype="float16") for block in (256, 128, 64, 32)),
        IntScheme(bits=8, block=None),
    ),
}
# Tables that are only looked up may have these besides.
_TABLE_SCHEMES: dict[str, tuple[IntScheme, ...]] = {
    "onnx": (),
    "litert": (
        IntScheme(bits=2, block=32, zero_point=True, scale_dtype="float16"),
        IntScheme(bits=8, block=128),
    ),
}
_ROUNDINGS: tuple[Rounding, ...] = ("nearest", "search", "gptq")


def candidates_of(spec: ModelSpec, backend: Backend) -> list[tuple[Group, list[Candidate]]]:
    """Every group of the model, and how it may be stored; schemes that a group cannot have are left out."""
    return [(group, _candidates(group, backend)) for group in groups_of(spec)]


def _candidates(group: Group, backend: Backend) -> list[Candidate]:
    schemes: Sequence[Scheme] = _SCHEMES[backend.name]
    if not group.multiplied:
        schemes = (*_TABLE_SCHEMES[backend.name], *schemes)
    found: list[Candidate] = []
    for scheme in schemes:
        for rounding in _ROUNDINGS if isinstance(scheme, IntScheme) and scheme.bits < 8 else _ROUNDINGS[:1]:
            one = candidate(group, Storage(scheme=scheme, rounding=rounding), backend)
            if one is None or (rounding in CALIBRATED and not group.multiplied):
                continue
            found.append(one)
    # A width whose blocks all fail a shape is kept with what takes their place.
    as_asked = {_bits(one) for one in found if one.asked in one.stored.values()}
    unique: list[Candidate] = []
    for one in found:
        known = any(one.stored == other.stored for other in unique)
        if not known and (one.asked in one.stored.values() or _bits(one) not in as_asked):
            unique.append(one)
    return unique or [_kept(group)]


def _bits(one: Candidate) -> int:
    return one.asked.scheme.bits if isinstance(one.asked.scheme, IntScheme) else 32


def _kept(group: Group) -> Candidate:
    float32 = Storage(scheme=FLOAT32)
    return Candidate(float32, {tensor.name: float32 for tensor in group.tensors})


def candidate(group: Group, asked: Storage, backend: Backend) -> Candidate | None:
    """What `asked` gives for the tensors of a group; None where the backend cannot have it."""
    stored = {}
    for tensor in group.tensors:
        scheme, _ = fit(tensor, asked.scheme, backend)
        try:
            backend.check(scheme, what=tensor.name, multiplied=group.multiplied, gathered=tensor.gathered)
        except UnsupportedError:
            return None
        stored[tensor.name] = Storage(
            scheme=scheme, rounding=asked.rounding if isinstance(scheme, IntScheme) else "nearest"
        )
    return Candidate(asked, stored)
