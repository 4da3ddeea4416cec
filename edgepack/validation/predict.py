"""What arithmetic says about devices that are not here: predictions. How wrong they can be: docs/devices.md.

A decode step reads every weight once, so its speed is the bandwidth of the memory times the share of it that the
runtime makes use of: the efficiency, which is measured here and taken to be the same there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgepack.planner import Plan
from edgepack.quant.schemes import IntScheme
from edgepack.spec import Frozen
from edgepack.targets import DeviceProfile
from edgepack.units import format_bytes
from edgepack.validation.bandwidth import Bandwidth
from edgepack.validation.metrics import Metric, find_metric
from edgepack.validation.result import Prediction

# Where no bandwidth was measured here: less than any quiet measurement of docs/benchmarks.md (0.63 to 0.91).
FALLBACK_EFFICIENCY = 0.6
# Any of these multiplies 8-bit numbers four at a time.
DOT_PRODUCT = ("asimddp", "avx512_vnni", "avx_vnni")
# Without, integer weights keep the CPU busy before the memory: 0.63 to 0.68 on a Zen 3 (docs/benchmarks.md), about 0.63
# and 0.69 for llama.cpp on a Raspberry Pi 4 (docs/devices.md).
EFFICIENCY_WITHOUT_DOT_PRODUCT = 0.63
# Where the system shows no cache: more than most phones and boards have.
ASSUMED_CACHE_BYTES = 32 * 2**20


class PackageFacts(Frozen):
    """What predictions need to know of a package.

    Attributes:
        bytes_per_step: what one decode step reads, planned for the tokens that the measured run filled.
        integer_weights: most of these bytes are quantized weights.
    """

    bytes_per_step: int
    integer_weights: bool


def package_facts(plan: Plan) -> PackageFacts:
    """The facts of a plan; plan the tokens of the run, since caches are read too."""
    sizes = {True: 0, False: 0}
    for tensor in plan.tensors:
        sizes[isinstance(tensor.scheme, IntScheme)] += tensor.scheme.nbytes(tensor.shape)
    return PackageFacts(bytes_per_step=plan.read_per_token_bytes, integer_weights=sizes[True] > sizes[False])


def predict(
    package: PackageFacts,
    metrics: Iterable[Metric],
    bandwidth: Bandwidth | None,
    devices: Sequence[DeviceProfile],
) -> tuple[Prediction, ...]:
    """One prediction a device, in the order given.

    Args:
        metrics: of the runs here; their largest peak RSS decides `fits`, their median decode speed the efficiency.
        bandwidth: of this machine, measured with the threads of the runs; None where it was not.
        devices: where a device has no bandwidth, no speed is predicted.
    """
    found = tuple(metrics)
    peak = find_metric(found, "peak_rss_bytes")
    decode = find_metric(found, "decode_tokens_per_s")
    efficiency, how = _efficiency(package, decode.median if decode else None, bandwidth)
    predictions = []
    for device in devices:
        speed, basis = _speed(package, efficiency, how, device)
        fits = None if peak is None else peak.highest <= device.limit_bytes
        limit = format_bytes(device.limit_bytes)
        memory = "" if peak is None else f"; peak RSS here {format_bytes(peak.highest)} of {limit}"
        predictions.append(
            Prediction(
                device=device.name,
                title=device.title,
                limit_bytes=device.limit_bytes,
                fits=fits,
                decode_tokens_per_s=speed,
                basis=f"{basis}{memory}",
            )
        )
    return tuple(predictions)


def _efficiency(
    package: PackageFacts, tokens_per_s: float | None, bandwidth: Bandwidth | None
) -> tuple[float | None, str]:
    """The share of this machine's bandwidth that decode uses, with its figures; None with the reason."""
    step = f"{format_bytes(package.bytes_per_step)} a step"
    cache_bytes = (bandwidth.cache_bytes if bandwidth else None) or ASSUMED_CACHE_BYTES
    if package.bytes_per_step <= cache_bytes:
        known = "this CPU's cache" if bandwidth and bandwidth.cache_bytes else "a cache, assumed,"
        return None, f"{step} fits in {known} of {format_bytes(cache_bytes)}, so memory does not bound decode"
    if bandwidth is None:
        return FALLBACK_EFFICIENCY, f"efficiency {FALLBACK_EFFICIENCY} assumed: no bandwidth was measured here"
    if tokens_per_s is None:
        return None, "no decode was measured here"
    share = tokens_per_s * package.bytes_per_step / bandwidth.bytes_per_s
    figures = (
        f"efficiency {share:.2f} here = {tokens_per_s:.2f} tok/s x {step} / {format_bytes(bandwidth.bytes_per_s)}/s "
        f"read with {bandwidth.threads} thread{'s' * (bandwidth.threads != 1)}"
    )
    if share > 1:
        return None, f"{figures}; above 1: decode ran from the CPU's cache, or the memory was busy when it was measured"
    if not bandwidth.reads_memory:
        figures += f", which may be cache: {format_bytes(bandwidth.buffer_bytes)} were read"
    return share, figures


def _speed(
    package: PackageFacts, efficiency: float | None, how: str, device: DeviceProfile
) -> tuple[float | None, str]:
    """Tokens a second on `device`, and how they were computed or why not."""
    bandwidth = device.read_bandwidth_bytes_per_s
    if bandwidth is None:
        return None, "no speed predicted: the profile has no bandwidth"
    if efficiency is None:
        return None, f"no speed predicted: {how}"
    if package.integer_weights and device.isa and not set(DOT_PRODUCT) & set(device.isa):
        used = min(efficiency, EFFICIENCY_WITHOUT_DOT_PRODUCT)
        held = f"efficiency {used:.2f} used, at most {EFFICIENCY_WITHOUT_DOT_PRODUCT} without a dot product instruction"
        how = f"{how}; {held}: an upper bound"
    else:
        used = efficiency
    if not device.isa:
        how += "; instruction set not known"
    speed = bandwidth * used / package.bytes_per_step
    formula = f"{format_bytes(bandwidth)}/s of the device x {used:.2f} / {format_bytes(package.bytes_per_step)} a step"
    return speed, f"predicted = {formula}; {how}"
