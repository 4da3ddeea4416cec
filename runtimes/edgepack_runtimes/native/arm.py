"""What an ARM core lacks, told before a library that takes it for granted ends the process."""

from __future__ import annotations

import ctypes
import platform

from edgepack.errors import EdgepackError

# Linux, include/uapi/linux/auxvec.h and arch/arm64/include/uapi/asm/hwcap.h.
AT_HWCAP, HWCAP_ATOMICS = 16, 1 << 8


def has_lse_atomics() -> bool:
    """Whether this core has the atomics of Armv8.1 (LSE), or is no ARM core, or does not tell."""
    if platform.machine() != "aarch64":
        return True
    try:
        getauxval = ctypes.CDLL(None).getauxval
    except AttributeError:  # no Linux
        return True
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    return bool(getauxval(AT_HWCAP) & HWCAP_ATOMICS)


def require_lse_atomics() -> None:
    """Refuse LiteRT-LM on a core that its library cannot run on.

    Raises:
        EdgepackError: the core has no LSE atomics, as a Raspberry Pi 4.
    """
    if not has_lse_atomics():
        raise EdgepackError(
            "LiteRT-LM needs LSE atomics (Armv8.1), which this core does not have, as that of a Raspberry Pi 4: "
            "use --runtime litert, which runs the same package"
        )
