"""The result of a validation. Every figure carries its unit in its name."""

from __future__ import annotations

from edgepack.planner import Target
from edgepack.spec import Frozen
from edgepack.validation.job import Phase
from edgepack.validation.machine import Machine


class MemoryPeak(Frozen):
    """The largest sample of one phase and its parts, which are None where the system does not tell them.

    Attributes:
        anonymous_bytes: heap and stacks: when they do not fit, the process is killed.
        file_bytes: pages of mapped files, which the system can drop and read again.
        shared_bytes: shared memory; the three parts add up to `rss_bytes`.
        most_anonymous_bytes: the most anonymous memory of any sample of the phase, not only of this one.
    """

    phase: Phase
    rss_bytes: int
    anonymous_bytes: int | None
    file_bytes: int | None
    shared_bytes: int | None
    most_anonymous_bytes: int | None


class Comparison(Frozen):
    """A planned figure beside the measured one; `difference_percent` is positive where more was measured."""

    planned_bytes: int
    measured_bytes: int
    difference_percent: float


class PlanComparison(Frozen):
    """The planner's figures for the tokens that this run filled, against the run.

    Attributes:
        context_tokens: prompt and new tokens of the run.
        full_context_total_bytes: the plan of the package, for its whole context.
    """

    context_tokens: int
    total: Comparison
    anonymous: Comparison | None
    file: Comparison | None
    full_context_total_bytes: int


class Report(Frozen):
    """What a package did in a fresh process, and whether that is good enough.

    A figure is None where the run did not get that far.

    Attributes:
        verdict: the run came to its end, and its peak RSS stays within the target if there is one.
        reasons: why; the first line says it all.
        notes: what to know when reading the figures.
        prompt_tokens: pseudo-random tokens that were prefilled; pseudo-random words where a runtime takes text.
        new_tokens: decode steps.
        threads: CPU threads that the runtime was told to use.
        verify_ms: checking every file of the package against its sha256.
        first_load_ms: load in a process of its own before the measured one; it builds the runtime's cache.
        load_ms: from the call of `edgepack.load` to a model that is ready, import of the runtime included; warm.
        ttft_ms: prefill and choice of the first token, with the page faults of a fresh process.
        decode_tokens_per_s: from the median step.
        decode_mean_tokens_per_s: steps over their total time.
        peak_rss_bytes: as the kernel recorded it.
        peak: the largest sample, which tells how the peak is made up; up to one sampling interval beside the truth.
        peak_anonymous_bytes: the most anonymous memory of any sample; often a moment of the load.
    """

    schema_version: int = 1
    package: str
    runtime: str
    target: Target | None
    verdict: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    context_tokens: int
    prompt_tokens: int
    new_tokens: int
    threads: int
    verify_ms: float
    first_load_ms: float | None
    load_ms: float | None
    ttft_ms: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    decode_mean_tokens_per_s: float | None
    peak_rss_bytes: int | None
    peak_anonymous_bytes: int | None
    peak: MemoryPeak | None
    phases: tuple[MemoryPeak, ...]
    plan: PlanComparison | None
    machine: Machine
