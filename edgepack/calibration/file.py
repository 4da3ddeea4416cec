"""A calibration file, opened: its header at once, the statistics of one matrix when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
from pydantic import ValidationError

from edgepack.calibration.inputs import input_map, trace_inputs
from edgepack.calibration.layout import FORMAT, RMS, SECOND, VERSION, Header, packed_row, packed_values, spec_sha256
from edgepack.checkpoint.fingerprint import checkpoint_fingerprint
from edgepack.checkpoint.folder import Checkpoint
from edgepack.checkpoint.safetensors import SafetensorsFile, TensorInfo
from edgepack.errors import CheckpointError, EdgepackError
from edgepack.model.spec import ModelSpec
from edgepack.reading import first_wrong
from edgepack.shown import printable, shown
from edgepack.values import FloatArray

WAY_OUT = "make a new one with `edgepack calibrate`"
_MIRRORED_COLUMNS = 1024
_SHOWN_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Moments:
    """Statistics of the K columns of what a matrix is multiplied with, over all positions, weighted.

    Attributes:
        rms: root mean square, [K].
    """

    rms: FloatArray
    _file: SafetensorsFile
    _second: TensorInfo

    def second(self) -> FloatArray:
        """The second moments (1/n) sum x x^T, [K, K], symmetric; a column that was always zero has zeros.

        Built in the one array that is returned: 1.07 GB for K = 16,384.

        Raises:
            EdgepackError: the file is damaged.
        """
        k = len(self.rms)
        out = np.empty((k, k), np.float32)
        with _damage_told():
            for row in range(k):
                values = out[row, row:]
                self._file.read_values(self._second, packed_row(row, k), values)
                values *= self.rms[row]
                values *= self.rms[row:]
        for start in range(0, k, _MIRRORED_COLUMNS):
            stop = min(start + _MIRRORED_COLUMNS, k)
            block = out[start:stop, start:stop]
            below = np.tril_indices(stop - start, -1)
            block[below] = block.T[below]
            for right in range(stop, k, _MIRRORED_COLUMNS):
                columns = slice(right, min(right + _MIRRORED_COLUMNS, k))
                out[columns, start:stop] = out[start:stop, columns].T
        return out


class Calibration:
    """An open calibration file; a context manager. Safe to read from several threads.

    Attributes:
        path: the file.
        header: what it says of itself.
    """

    def __init__(self, path: Path, header: Header, file: SafetensorsFile) -> None:
        self.path, self.header, self._file = path, header, file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Harmless when called twice."""
        self._file.close()

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the whole file, which is read for it once.

        Raises:
            EdgepackError: it cannot be read.
        """
        try:
            with self.path.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise EdgepackError(f"{self.path}: cannot be read: {error.strerror or error}; {WAY_OUT}") from error

    def require_for(self, checkpoint: Checkpoint, spec: ModelSpec) -> None:
        """Check that these are the statistics of `checkpoint`, read as `spec`.

        Raises:
            EdgepackError: they are of another checkpoint, spec or version of edgepack.
        """
        own, given = self.header.checkpoint_sha256, checkpoint_fingerprint(checkpoint)
        if own != given:
            raise EdgepackError(
                f"{self.path}: a calibration of another checkpoint: expected fingerprint {given[:_SHOWN_DIGITS]} "
                f"({printable(str(checkpoint.path))}), got {printable(own, _SHOWN_DIGITS)}; {WAY_OUT}"
            )
        inputs = trace_inputs(spec)
        columns = {read.name: read.columns for read in inputs}
        same = self.header.inputs == input_map(inputs) and all(
            self._info(name, "rms").shape == (k,) for name, k in columns.items()
        )
        if self.header.spec_sha256 != spec_sha256(spec) or not same:
            raise EdgepackError(
                f"{self.path}: a calibration of this checkpoint as another spec: expected {spec.family} with "
                f"{len(spec.layers)} layers, spec {spec_sha256(spec)[:_SHOWN_DIGITS]}, got "
                f"{printable(self.header.spec_sha256, _SHOWN_DIGITS)}; {WAY_OUT}"
            )

    def input_of(self, matrix: str) -> str:
        """The name of what `matrix` is multiplied with; matrices of one input have the same.

        Raises:
            EdgepackError: the file has no statistics of it.
        """
        name = self.header.inputs.get(matrix)
        if name is None:
            raise EdgepackError(f"{self.path}: no statistics of matrix {shown(matrix)}; {WAY_OUT}")
        return name

    def moments(self, matrix: str) -> Moments:
        """The statistics of what the matrix with the canonical name `matrix` is multiplied with.

        Raises:
            EdgepackError: the file has none of it, or is damaged.
        """
        name = self.input_of(matrix)
        rms = self._vector(name, RMS)
        return Moments(rms, self._file, self._info(name, SECOND))

    def _info(self, name: str, statistic: str) -> TensorInfo:
        return self._file.tensors[f"{name}.{statistic}"]

    def _vector(self, name: str, statistic: str) -> FloatArray:
        info = self._info(name, statistic)
        values = np.empty(info.shape, np.float32)
        with _damage_told():
            self._file.read_values(info, 0, values)
        return values


def open_calibration(path: str | Path) -> Calibration:
    """Open the calibration file `path` and check its whole header; no statistic is read.

    Raises:
        EdgepackError: it is none, of another version, truncated or damaged.
    """
    path = Path(path)
    with _damage_told():
        file = SafetensorsFile(path)
    try:
        return Calibration(path, _checked_header(path, file), file)
    except BaseException:
        file.close()
        raise


def _checked_header(path: Path, file: SafetensorsFile) -> Header:
    metadata = file.metadata if isinstance(file.metadata, Mapping) else {}
    if metadata.get("format") != FORMAT:
        _refuse(
            path, f"no calibration: expected the format {FORMAT} in its metadata, got {shown(metadata.get('format'))}"
        )
    if metadata.get("version") != VERSION:
        _refuse(path, f"a calibration of version {shown(metadata.get('version'))}: expected version {VERSION}")
    try:
        header = Header.model_validate_json(metadata.get("header", ""))
    except ValidationError as error:
        _refuse(path, f"the header of the calibration is damaged: {first_wrong(error, 'the header')}")
    for name in set(header.inputs.values()):
        _check_input(path, file, name)
    return header


def _check_input(path: Path, file: SafetensorsFile, name: str) -> None:
    rms = file.tensors.get(f"{name}.rms")
    columns = rms.shape[0] if rms is not None and len(rms.shape) == 1 else 0
    expected = {f"{name}.{RMS}": ("F32", (columns,))}
    expected[f"{name}.{SECOND}"] = ("F16", (packed_values(columns),))
    for tensor, (dtype, shape) in expected.items():
        info = file.tensors.get(tensor)
        got = "nothing" if info is None else f"{info.dtype} {list(info.shape)}"
        if info is None or not columns or (info.dtype, info.shape) != (dtype, shape):
            _refuse(path, f"tensor {shown(tensor)} of the calibration: expected {dtype} {list(shape)}, got {got}")


def _refuse(path: Path, what: str) -> NoReturn:
    raise EdgepackError(f"{path}: {what}; {WAY_OUT}")


@contextmanager
def _damage_told() -> Iterator[None]:
    """What a file of weights is refused for, said of a calibration: another way out stands behind it."""
    try:
        yield
    except CheckpointError as error:
        raise EdgepackError(f"{str(error).partition(';')[0]}; {WAY_OUT}") from error
