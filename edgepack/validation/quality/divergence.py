"""The figures of a comparison, position by position, from two arrays of logits. All arithmetic is in float64.

Letters: N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack.validation.processes.protocol import FailedRunError
from edgepack.validation.result import TextQuality
from edgepack.values import Frozen

Logits = npt.NDArray[np.float32]
# Two probabilities of which one is at most a tenth larger. Rounding activations to bfloat16, the numbers in which Gemma
# is trained, moves the distance between the two best tokens by 0.05 nats in the median and by 0.1 to 0.2 in every tenth
# position, and so changes the best token of one position in 22 with the weights untouched (docs/quality.md). A package
# is not blamed for what the reference itself does not settle.
NEAR_TIE_NATS = 0.1
# V is 262,144 for Gemma: 16 rows are 34 MB in float64.
BLOCK_ROWS = 16
# exp of more is no number that JSON can hold; a perplexity of 1e300 says enough.
_MOST_NATS = 690.0


class Positions(Frozen):
    """One value a position, in order.

    Attributes:
        kl: KL(reference || package) in nats, 0 or more.
        loss, reference_loss: minus the log-probability of the token that really follows.
        same: both have the same most likely token.
        near_tie: the two best tokens of the reference are within `NEAR_TIE_NATS`.
        either: the package's most likely token is one of these two.
    """

    kl: tuple[float, ...]
    loss: tuple[float, ...]
    reference_loss: tuple[float, ...]
    same: tuple[bool, ...]
    near_tie: tuple[bool, ...]
    either: tuple[bool, ...]

    @property
    def agreement(self) -> list[bool]:
        """The same most likely token, near ties aside."""
        return [
            same or (tie and either) for same, tie, either in zip(self.same, self.near_tie, self.either, strict=True)
        ]


def log_softmax(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Log-probabilities [N, V] in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def require_finite(logits: Logits, whose: str) -> None:
    """Raise `FailedRunError` if a logit is infinite or no number: no figure could be computed with it."""
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits).all(-1))[0])
        raise FailedRunError(f"{whose}: the logits at position {row} are not finite; is the model damaged?")


def compare_positions(reference: Logits, package: Logits, targets: Sequence[int]) -> Positions:
    """Compare finite logits [N, V] of the same N positions; `targets` are the tokens that follow them."""
    kl, loss, reference_loss = [], [], []
    same, near_tie, either = [], [], []
    for start in range(0, len(targets), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        p, q = log_softmax(reference[block]), log_softmax(package[block])
        rows, following = np.arange(len(p)), np.asarray(targets[block])
        # Rounding can make a sum of nothing slightly negative. A probability that underflows counts nothing.
        kl.append(np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0))
        loss.append(-q[rows, following])
        reference_loss.append(-p[rows, following])
        first, chosen = p.argmax(-1), q.argmax(-1)
        best = p[rows, first]
        p[rows, first] = -np.inf
        second = p.argmax(-1)
        same.append(chosen == first)
        near_tie.append(best - p[rows, second] <= NEAR_TIE_NATS)
        either.append((chosen == first) | (chosen == second))
    return Positions(
        kl=_flat(kl),
        loss=_flat(loss),
        reference_loss=_flat(reference_loss),
        same=_flat(same),
        near_tie=_flat(near_tie),
        either=_flat(either),
    )


def _flat(parts: list[npt.NDArray[Any]]) -> tuple[Any, ...]:
    return tuple(np.concatenate(parts).tolist())


def joined(parts: Iterable[Positions]) -> Positions:
    """The positions of several texts, one behind the other."""
    parts = list(parts)
    return Positions(
        **{name: tuple(value for part in parts for value in getattr(part, name)) for name in Positions.model_fields}
    )


def share(values: Sequence[bool]) -> float:
    """How many of `values` are true, from 0 to 1."""
    return sum(values) / len(values)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return float(np.mean(values))


def perplexity(losses: Sequence[float]) -> float:
    """Exponential of the mean loss in nats, kept within what JSON can hold."""
    return exp(min(mean(losses), _MOST_NATS))


def perplexity_ratio(positions: Positions) -> float:
    """Perplexity of the package over the reference's."""
    return exp(min(mean(positions.loss) - mean(positions.reference_loss), _MOST_NATS))


def p99(values: Sequence[float]) -> float:
    """99th percentile, interpolated between the two values next to it."""
    return float(np.quantile(values, 0.99))


def text_quality(name: str, positions: Positions) -> TextQuality:
    """The row of one text."""
    return TextQuality(
        name=name,
        tokens=len(positions.kl),
        kl_mean=mean(positions.kl),
        kl_p99=p99(positions.kl),
        top1_agreement=share(positions.agreement),
        perplexity=perplexity(positions.loss),
        reference_perplexity=perplexity(positions.reference_loss),
    )
