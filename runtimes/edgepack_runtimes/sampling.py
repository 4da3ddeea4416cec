"""From logits to the next token id: the four knobs of Transformers' `generate`, in its order, in numpy.

Order: repetition penalty, temperature, top-k, top-p, then one draw. V is the vocabulary size.

The same logits, knobs and seed give the same token on every machine and in every language: all arithmetic is that of
portable_math.py. docs/sampling.md has it in plain loops; a test, test_sampling_vectors.py, holds the two together.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import field_validator, model_validator

from edgepack.errors import EdgepackError, PackageError
from edgepack.shown import shown
from edgepack.values import Frozen
from edgepack_runtimes.portable_math import SEED_BITS, Float64Array, SplitMix64, exp, running_sum
from edgepack_runtimes.sampling_defaults import sampling_defaults

Logits = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Below this the softmax of float32 logits is one-hot anyway: the way to say "greedy" is 0.
_MIN_TEMPERATURE = 1e-3
_MAX_SEED = 2**SEED_BITS - 1
# Up to so many tokens the weights are computed to the bit at once. From more, numpy's fast functions estimate first.
_FEW = 8192
# An estimate's relative error is far smaller: 262,144 roundings to float64 make 3e-11.
_DOUBT = 1e-9


class SamplingParams(Frozen):
    """How the next token is chosen. The defaults are greedy decoding.

    Attributes:
        temperature: 0 takes the most likely token; otherwise logits are divided by it (0.001 or more).
        top_k: keep the k most likely tokens, and those tied with the last of them; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probabilities reach this sum; 1 keeps all.
        repetition_penalty: 1 is off; logits of tokens already seen, prompt included, are divided by it when positive
            and multiplied by it when negative (CTRL, Keskar et al., 2019).
        seed: 0 to 2**64 - 1; the same seed gives the same tokens, None draws a fresh one.

    Raises:
        EdgepackError: a value out of its range; the field, the range and the value are named. Or top_k, top_p or seed
            is set and temperature is not: they would do nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    # EdgepackError is no ValueError, so pydantic lets it through as it is: one line instead of its own report.
    @field_validator("temperature", mode="before")
    @classmethod
    def _check_temperature(cls, value: object) -> float:
        number = _number("temperature", value)
        if number != 0 and number < _MIN_TEMPERATURE:
            raise EdgepackError(
                f"temperature {shown(value)} is not usable: expected 0 (greedy) or a number from {_MIN_TEMPERATURE} on"
            )
        return number

    @field_validator("top_p", mode="before")
    @classmethod
    def _check_top_p(cls, value: object) -> float:
        number = _number("top_p", value)
        if not 0 < number <= 1:
            raise EdgepackError(f"top_p {shown(value)} is not usable: expected a number over 0 and up to 1 (1 is off)")
        return number

    @field_validator("repetition_penalty", mode="before")
    @classmethod
    def _check_penalty(cls, value: object) -> float:
        number = _number("repetition_penalty", value)
        if number <= 0:
            raise EdgepackError(f"repetition_penalty {shown(value)} is not usable: expected a number over 0 (1 is off)")
        return number

    @field_validator("top_k", mode="before")
    @classmethod
    def _check_top_k(cls, value: object) -> int:
        return _whole_number("top_k", value, "of at least 0 (off)")

    @field_validator("seed", mode="before")
    @classmethod
    def _check_seed(cls, value: object) -> int | None:
        return None if value is None else _whole_number("seed", value, "from 0 to 2**64 - 1", _MAX_SEED)

    @model_validator(mode="after")
    def _check_temperature_is_set(self) -> Self:
        off = {"top_k": 0, "top_p": 1.0, "seed": None}
        idle = [name for name, value in off.items() if getattr(self, name) != value]
        if idle and "temperature" not in self.model_fields_set:
            raise EdgepackError(
                f"{idle[0]} is {getattr(self, idle[0])}, which does nothing: temperature is 0, the most likely token; "
                "set the temperature as well (--temperature 1 takes the model's own probabilities)"
            )
        return self

    @classmethod
    def from_package(
        cls,
        package: str | Path,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Self:
        """What the generation_config.json in the folder `package` asks for, as Transformers' `generate` would take it.

        What is given here goes before the file, and a temperature before its `do_sample`.

        Raises:
            EdgepackError: the file is broken, or asks for a choice of tokens that is not among the four knobs; or as
                above.
        """
        defaults = sampling_defaults(package)
        knobs = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
        given: dict[str, Any] = {name: value for name, value in {**knobs, "seed": seed}.items() if value is not None}
        try:
            found = cls(**defaults.knobs)
        except EdgepackError as error:
            raise PackageError(f"{defaults.file}: {error}") from error
        if not defaults.samples and temperature is None:
            return cls(**({"repetition_penalty": found.repetition_penalty} | given))
        return cls(**(found.model_dump(exclude={"seed"}) | given))


GREEDY = SamplingParams()


class Sampler:
    """Chooses token ids one after another; holds the random state of one generation."""

    def __init__(self, params: SamplingParams = GREEDY) -> None:
        self.params = params
        self._generator = SplitMix64(params.seed)

    def sample(self, logits: Logits, history: Collection[int] = ()) -> int:
        """Return the next token id.

        Args:
            logits: float32 [V]; left as it is.
            history: ids of the tokens so far, prompt included; read only when there is a repetition penalty. A set is
                as good as a sequence.

        Raises:
            EdgepackError: `logits` is not [V], or holds NaN or plus infinity, or nothing but minus infinity; an id of
                `history` is outside the vocabulary.
        """
        scores = np.asarray(logits)
        if scores.ndim != 1 or scores.size == 0:
            raise EdgepackError(f"sampling needs the logits of one position, shape [V]: got shape {list(scores.shape)}")
        if self.params.repetition_penalty != 1:
            scores = _penalize(scores, history, self.params.repetition_penalty)
        best = int(np.argmax(scores))  # the lowest id among equals, and the first NaN where there is one
        highest = float(scores[best])
        if not math.isfinite(highest):
            raise EdgepackError(
                f"the model returned unusable logits (largest value {highest}): "
                "the package is damaged or a tensor overflows; run `edgepack validate` on it"
            )
        if self.params.temperature == 0:
            return best
        ids, exponents = _candidates(scores, highest, self.params)
        drawn = _draw(exponents, self._generator.next_float())
        return drawn if ids is None else int(ids[drawn])


def _penalize(logits: Logits, history: Collection[int], penalty: float) -> Float64Array:
    """`logits` as float64, every id of `history` made less likely, once however often it occurs."""
    seen = np.fromiter(set(history), dtype=np.int64)
    if seen.size and not 0 <= seen.min() <= seen.max() < logits.size:
        bad = int(seen.min() if seen.min() < 0 else seen.max())
        raise EdgepackError(f"token id {bad} in the history is outside the vocabulary of {logits.size} tokens")
    scores = logits.astype(np.float64)
    old = scores[seen]
    with np.errstate(over="ignore"):  # an extreme penalty: infinity is the right value
        scores[seen] = np.where(old > 0, old / penalty, old * penalty)
    return scores


def _candidates(scores: Logits, highest: float, params: SamplingParams) -> tuple[IntArray | None, Float64Array]:
    """Ids that may be drawn, ascending (None: all), and the logarithms of their weights, the largest of them 0."""
    ids: IntArray | None = None
    # A division by the temperature keeps the order, so that top-k can go before it and spare it most tokens.
    if 0 < params.top_k < scores.size:
        ids = _highest(scores, params.top_k)
        scores = scores[ids]
    exponents = scores.astype(np.float64)
    with np.errstate(over="ignore"):  # after an extreme penalty: minus infinity, a weight of 0
        exponents -= highest
        exponents /= params.temperature
    if params.top_p < 1:
        kept = _nucleus(exponents, params.top_p)
        ids, exponents = kept if ids is None else ids[kept], exponents[kept]
    return ids, exponents


def _highest(scores: Logits, k: int) -> IntArray:
    """Indices, ascending, of the k highest and of those tied with the last of them."""
    # At least k scores reach the kth of the maxima of blocks: the search among these few is ten times faster.
    maxima = np.maximum.reduceat(scores, np.arange(0, scores.size, 64))
    least = np.partition(maxima, -k)[-k] if k <= maxima.size else -np.inf
    ids = np.flatnonzero(scores >= least)
    scores = scores[ids]
    return ids[np.flatnonzero(scores >= np.partition(scores, -k)[-k])]


def _nucleus(exponents: Float64Array, top_p: float) -> IntArray:
    """Indices, ascending, of the largest weights whose sum reaches `top_p` of all; lowest index first among equals."""
    if exponents.size > _FEW and 1 - top_p > 1e3 * _DOUBT:
        total = float(_estimated_sums(exponents)[-1])
        # Tokens under (1 - top_p) / n sum to less than 1 - top_p together, so none of them can belong to the nucleus;
        # half the bound is room for rounding. Without them the weights and the sort are cheap.
        likely = np.flatnonzero(exponents >= math.log(0.5 * (1 - top_p) * total / exponents.size))
        kept, is_certain = _largest(exp(exponents[likely]), top_p * total, _DOUBT)
        if is_certain:
            return likely[kept]
    weights = exp(exponents)
    return _largest(weights, top_p * float(running_sum(weights)[-1]))[0]


def _largest(weights: Float64Array, target: float, doubt: float = 0.0) -> tuple[IntArray, bool]:
    """Indices, ascending, of the largest weights whose sum reaches `target`; lowest index first among equals.

    And whether they are the same for every target that differs by up to `doubt` times itself.
    """
    descending = np.sort(weights)[::-1]
    before, after = np.searchsorted(running_sum(descending), (target * (1 - doubt), target * (1 + doubt)), side="left")
    count = min(int(before) + 1, weights.size)
    # Sorting values and cutting at the last one kept is several times faster than an argsort.
    last = descending[count - 1]
    above = np.flatnonzero(weights > last)
    tied = np.flatnonzero(weights == last)[: count - above.size]
    return np.sort(np.concatenate((above, tied))), bool(before == after)


def _draw(exponents: Float64Array, point: float) -> int:
    """The index at which the running sum of the weights passes `point` (0 <= point < 1) times their total."""
    if exponents.size > _FEW:
        estimated = _estimated_draw(exponents, point)
        if estimated is not None:
            return estimated
    # One sum is above the target, and its weight is not 0: a product with 53 bits under 1 never rounds up to the total.
    sums = running_sum(exp(exponents))
    return int(np.searchsorted(sums, point * sums[-1], side="right"))


def _estimated_draw(exponents: Float64Array, point: float) -> int | None:
    """As above; None where the target is so near to a sum that an error of an estimate could make a difference."""
    block_sums = _estimated_sums(exponents)
    target, doubt = point * block_sums[-1], _DOUBT * block_sums[-1]
    block = int(np.searchsorted(block_sums, target, side="right"))
    start = block * _FEW
    inside = np.cumsum(np.append(block_sums[block - 1] if block else 0.0, np.exp(exponents[start : start + _FEW])))
    before, after = np.searchsorted(inside, (target - doubt, target + doubt), side="right")
    return start + int(before) - 1 if 0 < before == after < inside.size else None


def _estimated_sums(exponents: Float64Array) -> Float64Array:
    """About the sums of the weights up to the end of each block of `_FEW`."""
    return np.cumsum([np.sum(np.exp(exponents[start : start + _FEW])) for start in range(0, exponents.size, _FEW)])


def _number(name: str, value: object) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number):
            return number
    raise EdgepackError(f"{name} {shown(value)} is not usable: expected a number")


def _whole_number(name: str, value: object, expected: str, most: float = math.inf) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= value <= most:
        return operator.index(value)
    raise EdgepackError(f"{name} {shown(value)} is not usable: expected a whole number {expected}")
