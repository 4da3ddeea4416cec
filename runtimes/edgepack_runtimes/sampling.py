"""From logits to the next token id: the four knobs of Transformers' `generate`, in its order, in numpy.

Order: repetition penalty, temperature, top-k, top-p, then one draw. V is the vocabulary size.
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
from edgepack_runtimes.sampling_defaults import sampling_defaults

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Below this a float32 softmax is one-hot anyway and the division can overflow: the way to say "greedy" is 0.
_MIN_TEMPERATURE = 1e-3
# All tokens have the same weight long before, and float32 still holds it.
_MOST_TEMPERATURE = 1e30
_DRAW_BLOCK = 512


class SamplingParams(Frozen):
    """How the next token is chosen. The defaults are greedy decoding.

    Attributes:
        temperature: 0 takes the most likely token; otherwise logits are divided by it (0.001 or more).
        top_k: keep the k most likely tokens, and those tied with the last of them; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probabilities reach this sum; 1 keeps all.
        repetition_penalty: 1 is off; logits of tokens already seen, prompt included, are divided by it when positive
            and multiplied by it when negative (CTRL, Keskar et al., 2019).
        seed: the same seed gives the same tokens; None draws a fresh one.

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
        return _whole_number("top_k", value, "0 (off)")

    @field_validator("seed", mode="before")
    @classmethod
    def _check_seed(cls, value: object) -> int | None:
        return None if value is None else _whole_number("seed", value, "0")

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
        self._rng = np.random.default_rng(params.seed)

    def sample(self, logits: FloatArray, history: Collection[int] = ()) -> int:
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
        ids, weights = _candidates(scores, highest, self.params)
        drawn = _draw(weights, float(self._rng.random()))
        return drawn if ids is None else int(ids[drawn])


def _draw(weights: FloatArray, point: float) -> int:
    """The index at which the running sum of `weights` passes `point` (0 <= point < 1) times their total.

    In two steps, block and token within: a running sum over a vocabulary of 262,400 would take longer than all else.
    """
    starts = np.arange(0, weights.size, _DRAW_BLOCK)
    block_ends = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    target = point * float(block_ends[-1])
    block = _first_above(block_ends, target)
    start = int(starts[block])
    inside = np.cumsum(weights[start : start + _DRAW_BLOCK], dtype=np.float64)
    before = float(block_ends[block - 1]) if block else 0.0
    return start + _first_above(inside, max(0.0, target - before))


def _first_above(running_sum: npt.NDArray[np.float64], target: float) -> int:
    """Index of the first sum over `target`; where rounding leaves none, of the last one that grew."""
    first = int(np.searchsorted(running_sum, target, side="right"))
    return min(first, int(np.searchsorted(running_sum, running_sum[-1], side="left")))


def _penalize(scores: FloatArray, history: Collection[int], penalty: float) -> FloatArray:
    """A copy of `scores` with every id of `history` made less likely, once however often it occurs."""
    seen = np.fromiter(set(history), dtype=np.int64)
    if seen.size and not 0 <= seen.min() <= seen.max() < scores.size:
        bad = int(seen.min() if seen.min() < 0 else seen.max())
        raise EdgepackError(f"token id {bad} in the history is outside the vocabulary of {scores.size} tokens")
    result = scores.copy()
    result[seen] = np.where(result[seen] > 0, result[seen] / penalty, result[seen] * penalty)
    return result


def _candidates(scores: FloatArray, highest: float, params: SamplingParams) -> tuple[IntArray | None, FloatArray]:
    """Ids that may be drawn, ascending (None: all), and their unnormalized probabilities, the largest of them 1."""
    ids: IntArray | None = None
    if 0 < params.top_k < scores.size:
        kth = np.partition(scores, scores.size - params.top_k)[scores.size - params.top_k]
        ids = np.flatnonzero(scores >= kth)
        scores = scores[ids]
    # Subtracting the maximum first keeps small temperatures from overflowing.
    weights = np.exp((scores - highest) / min(params.temperature, _MOST_TEMPERATURE))
    if params.top_p < 1:
        kept = _nucleus(weights, params.top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return ids, weights


def _nucleus(weights: FloatArray, top_p: float) -> IntArray:
    """Indices, ascending, of the largest weights whose sum reaches `top_p` of all; lowest index first among equals."""
    total = float(np.sum(weights, dtype=np.float64))
    # Tokens under (1 - top_p) / n sum to less than 1 - top_p together, so none of them can belong to the nucleus.
    # Leaving them out before the sort makes it cheap for a whole vocabulary; half the bound is room for rounding.
    likely = np.flatnonzero(weights >= 0.5 * (1 - top_p) * total / weights.size)
    candidates = weights[likely]
    descending = np.sort(candidates)[::-1].astype(np.float64)
    mass_before = np.cumsum(descending) - descending
    count = max(1, int(np.count_nonzero(mass_before < top_p * total)))
    # Sorting values and cutting at the last one kept is several times faster than an argsort.
    last = descending[count - 1]
    above = np.flatnonzero(candidates > last)
    tied = np.flatnonzero(candidates == last)[: count - above.size]
    return likely[np.sort(np.concatenate((above, tied)))]


def _number(name: str, value: object) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number):
            return number
    raise EdgepackError(f"{name} {shown(value)} is not usable: expected a number")


def _whole_number(name: str, value: object, least: str) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0:
        return operator.index(value)
    raise EdgepackError(f"{name} {shown(value)} is not usable: expected a whole number of at least {least}")
