"""Random numbers, the exponential function and sums that have the same bits on every machine and in every language.

Each step is one IEEE 754 operation on float64, rounded to nearest: no SIMD approximation of a library, no sum in pairs,
no fused multiply-add. docs/sampling.md says the same in plain loops, for those who write it again in Kotlin.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

SEED_BITS = 64
_WORD = 2**64 - 1
_BLOCK = 8192  # numbers whose twenty intermediate results stay in the processor's cache

# exp is that of fdlibm (e_exp.c), which Java prescribes for StrictMath.exp: within 1 ulp.
_LEAST_EXPONENT = -708.0  # powers of e become subnormal numbers soon below
_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")  # its last 20 bits are 0, so that k times it is exact
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_HALF_LN2 = float.fromhex("0x1.62e43p-2")  # fdlibm compares the upper 32 bits: ln 2 / 2 and a little
_TINY = 2.0**-28
_P1 = float.fromhex("0x1.555555555553ep-3")
_P2 = float.fromhex("-0x1.6c16c16bebd93p-9")
_P3 = float.fromhex("0x1.1566aaf25de2cp-14")
_P4 = float.fromhex("-0x1.bbd41c5d26bf1p-20")
_P5 = float.fromhex("0x1.6376972bea4d0p-25")


class SplitMix64:
    """A counter of 64 bits and a hash of it (Steele, Lea and Flood, 2014).

    Attributes:
        state: the counter, 0 to 2**64 - 1: all there is to save and restore.
    """

    def __init__(self, seed: int | None = None) -> None:
        """`seed` is 0 to 2**64 - 1; None asks the operating system for one."""
        self.state = secrets.randbits(SEED_BITS) if seed is None else seed

    def next_word(self) -> int:
        """The next number from 0 to 2**64 - 1."""
        self.state = self.state + 0x9E3779B97F4A7C15 & _WORD
        word = self.state
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
        return word ^ word >> 31

    def next_float(self) -> float:
        """The next number from 0 up to, not including, 1: the upper 53 bits of a word."""
        return (self.next_word() >> 11) * 2.0**-53


def running_sum(values: Float64Array) -> Float64Array:
    """Sums of the first, the first two, ... of `values`, from left to right, each rounded to float64.

    np.cumsum promises this order: each sum is the one before plus one value. np.sum adds in pairs of blocks, whose size
    depends on the machine.
    """
    return np.cumsum(values)


def exp(x: Float64Array) -> Float64Array:
    """E to the power of each of `x` [N], none of which is above 0; 0 where x is under -708."""
    result = np.zeros_like(x)
    for start in range(0, x.size, _BLOCK):
        part = x[start : start + _BLOCK]
        kept = part >= _LEAST_EXPONENT
        if kept.all():
            result[start : start + _BLOCK] = _exp_of_some(part)
        else:
            result[start : start + _BLOCK][kept] = _exp_of_some(part[kept])
    return result


def _exp_of_some(x: Float64Array) -> Float64Array:
    """As above, for x from -708 on."""
    # x = k ln 2 + r, where r = high - low; numpy evaluates one operation after the other and fuses none.
    k = np.trunc(x * _LOG2_E - 0.5)
    np.copyto(k, 0.0, where=x > -_HALF_LN2)
    high, low = x - k * _LN2_HIGH, k * _LN2_LOW
    r = high - low
    t = r * r
    c = r - t * (_P1 + t * (_P2 + t * (_P3 + t * (_P4 + t * _P5))))
    result = 1.0 - ((low - (r * c) / (2.0 - c)) - high)
    bits = result.view(np.int64)
    bits += k.astype(np.int64) << 52  # times 2**k, exactly: k goes to the exponent
    near = np.flatnonzero(x > -_TINY)
    result[near] = 1.0 + x[near]
    return result
