"""What arithmetic says about devices that are not here: predictions. How wrong they can be: docs/devices.md.

A decode step reads every weight once, so its speed is the bandwidth of the memory times the share of it that the
runtime makes use of: the efficiency, which is measured here and taken to be the same there. What this machine did
besides would be taken for the runtime's doing: where it was not quiet, the speeds are doubtful or withheld.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgepack.planning.plan import Plan
from edgepack.planning.targets import DeviceProfile
from edgepack.quant.layout import IntScheme
from edgepack.units import format_bytes, format_percent
from edgepack.validation.figures.bandwidth import Bandwidth, noise
from edgepack.validation.metrics import Metric, find_metric
from edgepack.validation.records import Load
from edgepack.validation.result import Prediction, PredictionBasis
from edgepack.values import Frozen

# Where no bandwidth was measured here: less than any quiet measurement of docs/benchmarks.md (0.63 to 0.91).
FALLBACK_EFFICIENCY = 0.6
# Any of these multiplies 8-bit numbers four at a time.
DOT_PRODUCT = ("asimddp", "avx512_vnni", "avx_vnni")
# Without, integer weights keep the CPU busy before the memory: 0.63 to 0.68 on a Zen 3 (docs/benchmarks.md), about 0.63
# and 0.69 for llama.cpp on a Raspberry Pi 4 (docs/devices.md).
EFFICIENCY_WITHOUT_DOT_PRODUCT = 0.63
# Below, something else than the memory was the limit: other load, or a CPU without the kernels.
LOWEST_EFFICIENCY = 0.5
# Where the system shows no cache: more than most phones and boards have.
ASSUMED_CACHE_BYTES = 32 * 2**20


class Quiet(Frozen):
    """How far from quiet a machine may be before its speeds are doubted.

    Attributes:
        spread: of the readings of its memory, see `bandwidth.noise`.
        others_share, steal_share: see `machine.Load`.
    """

    spread: float
    others_share: float
    steal_share: float


# A machine without neighbours stays within 2 % from one reading to the next, and its system takes a few percent.
DOUBTFUL = Quiet(spread=0.05, others_share=0.1, steal_share=0.01)
# A third less bandwidth, or a third of the cores gone: a prediction would be of this machine's load.
USELESS = Quiet(spread=0.5, others_share=0.35, steal_share=0.1)


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


def disturbances(readings: Sequence[Bandwidth], load: Load | None, bounds: Quiet = DOUBTFUL) -> list[str]:
    """What made this machine not a quiet one while it measured, in words, as far as it is beyond `bounds`."""
    found = []
    if noise(readings) > bounds.spread:
        rates = [reading.median_bytes_per_s for reading in readings]
        ends = f"{format_bytes(min(rates))}/s to {format_bytes(max(rates))}/s"
        found.append(f"between the repetitions it read its own memory at {ends}")
    if load is not None and load.others_share > bounds.others_share:
        found.append(f"other processes took {format_percent(100 * load.others_share)} of its cores' time")
    if load is not None and load.steal_share > bounds.steal_share:
        found.append(f"its hypervisor gave {format_percent(100 * load.steal_share)} of it to others (steal)")
    return found


def basis_of(
    package: PackageFacts, metrics: Iterable[Metric], readings: Sequence[Bandwidth], load: Load | None = None
) -> PredictionBasis:
    """The efficiency that the runs here reached, and whether it says something about other devices.

    Args:
        metrics: of the runs here; their median decode speed decides.
        readings: of this machine's memory, with the threads of the runs; without one an efficiency is assumed.
        load: what else this machine did meanwhile.
    """
    found = tuple(metrics)
    decode, peak = find_metric(found, "decode_tokens_per_s"), find_metric(found, "peak_rss_bytes")
    bandwidth = max(readings, key=lambda reading: reading.bytes_per_s, default=None)
    efficiency, how, withheld = _efficiency(package, decode.figure if decode else None, bandwidth)
    if bandwidth is not None and withheld is None and (heavy := disturbances(readings, load, USELESS)):
        withheld = f"not a quiet machine: {'; '.join(heavy)}"
    doubts = disturbances(readings, load) if withheld is None else []
    formula = "predicted tok/s = read bandwidth of the device x efficiency / bytes a step"
    text = f"{formula}, {format_bytes(package.bytes_per_step)}"
    text += f"; {how}" if how else ""
    text += f"; it should fit where the peak RSS here, {format_bytes(peak.figure)}, does" if peak else ""
    return PredictionBasis(
        text=text,
        efficiency=efficiency,
        withheld=withheld,
        doubt=f"not a quiet machine: {'; '.join(doubts)}" if doubts else None,
    )


def predict_all(
    package: PackageFacts, metrics: Iterable[Metric], basis: PredictionBasis, devices: Sequence[DeviceProfile]
) -> tuple[Prediction, ...]:
    """One prediction a device, in the order given.

    Args:
        metrics: of the runs here; their largest peak RSS decides `fits`.
        devices: where a device has no bandwidth, no speed is predicted.
    """
    peak = find_metric(metrics, "peak_rss_bytes")
    efficiency = basis.efficiency if basis.withheld is None else None
    predictions = []
    for device in devices:
        speed, special = _speed(package, efficiency, device)
        predictions.append(
            Prediction(
                device=device.name,
                title=device.title,
                limit_bytes=device.limit_bytes,
                fits=None if peak is None else peak.figure <= device.limit_bytes,
                decode_tokens_per_s=speed,
                read_bandwidth_bytes_per_s=device.read_bandwidth_bytes_per_s,
                basis=special,
            )
        )
    return tuple(predictions)


def predict(package: PackageFacts, device: DeviceProfile) -> Prediction:
    """`predict_all` for one device, with nothing measured: its basis says all of it."""
    basis = basis_of(package, (), [])
    said = basis.text if basis.withheld is None else f"no speed predicted: {basis.withheld}"
    (prediction,) = predict_all(package, (), basis, [device])
    rate = prediction.read_bandwidth_bytes_per_s
    parts = (f"reads {format_bytes(rate)}/s" if rate else "", prediction.basis, said if rate else "")
    return prediction.model_copy(update={"basis": "; ".join(part for part in parts if part)})


def _efficiency(
    package: PackageFacts, tokens_per_s: float | None, bandwidth: Bandwidth | None
) -> tuple[float | None, str, str | None]:
    """The share of this machine's bandwidth that decode uses, how it was found, and why it says nothing elsewhere."""
    step = f"{format_bytes(package.bytes_per_step)} a step"
    cache_bytes = (bandwidth.cache_bytes if bandwidth else None) or ASSUMED_CACHE_BYTES
    if package.bytes_per_step <= cache_bytes:
        known = "this CPU's cache" if bandwidth and bandwidth.cache_bytes else "a cache, assumed,"
        return None, "", f"{step} fits in {known} of {format_bytes(cache_bytes)}, so memory does not bound decode"
    if bandwidth is None:
        return FALLBACK_EFFICIENCY, f"efficiency {FALLBACK_EFFICIENCY} assumed: no bandwidth was measured here", None
    if tokens_per_s is None:
        return None, "", "no decode was measured here"
    share = tokens_per_s * package.bytes_per_step / bandwidth.bytes_per_s
    figures = (
        f"efficiency {share:.2f} here = {tokens_per_s:.2f} tok/s x {step} / {format_bytes(bandwidth.bytes_per_s)}/s "
        f"read with {bandwidth.threads} thread{'s' * (bandwidth.threads != 1)}"
    )
    if share > 1:
        why = "decode ran from the CPU's cache, or the memory was busy when it was measured"
        return share, figures, f"the efficiency, {share:.2f}, is above 1: {why}"
    if share < LOWEST_EFFICIENCY:
        why = "other load on this machine slowed decode down, or its CPU was the limit and not its memory"
        return share, figures, f"the efficiency, {share:.2f}, is below {LOWEST_EFFICIENCY}: {why}"
    if not bandwidth.reads_memory:
        figures += f", which may be cache: {format_bytes(bandwidth.buffer_bytes)} were read"
    return share, figures, None


def _speed(package: PackageFacts, efficiency: float | None, device: DeviceProfile) -> tuple[float | None, str]:
    """Tokens a second on `device`, and what is special about it."""
    bandwidth = device.read_bandwidth_bytes_per_s
    if bandwidth is None:
        return None, "no speed predicted: the profile has no bandwidth"
    said = []
    if efficiency is None:
        return None, ""
    if package.integer_weights and device.isa and not set(DOT_PRODUCT) & set(device.isa):
        efficiency = min(efficiency, EFFICIENCY_WITHOUT_DOT_PRODUCT)
        held = f"at most {EFFICIENCY_WITHOUT_DOT_PRODUCT} without a dot product instruction"
        said.append(f"efficiency {efficiency:.2f} used, {held}: an upper bound")
    if not device.isa:
        said.append("instruction set not known")
    return bandwidth * efficiency / package.bytes_per_step, "; ".join(said)
