"""The result of a validation: one value, of which the faces in `edgepack.report` are made.

Every figure carries its unit in its name. A figure is None, or missing from `metrics`, where the run did not get that
far or the system does not tell.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from edgepack.package.folder import CalibrationSource
from edgepack.planning.plan import Suggestion, Target
from edgepack.validation.metrics import Better, Metric
from edgepack.validation.records import LimitFacts, Load, Machine, ProcessRecord
from edgepack.validation.thresholds import Threshold
from edgepack.values import Frozen

CheckKind = Literal["run", "ram", "latency", "quality", "regression"]
Unjudged = Literal["within noise", "few runs", "told only", "from zero"]
REPORT_SCHEMA_VERSION: Final = 5


class Subject(Frozen):
    """What was validated.

    Attributes:
        path: the package folder as it was given.
        model: model family and size of the plan, for instance ``gemma3n, 30 layers``.
        fingerprint: sha256 of the manifest: the same for the same bytes.
        disk_bytes: all files of the package.
        calibration: what its weights were rounded by; None where that was nothing.
    """

    path: str
    model: str
    backend: str
    recipe: str
    context_tokens: int
    fingerprint: str
    disk_bytes: int
    calibration: CalibrationSource | None = None


class Check(Frozen):
    """One question with its answer; the verdict is yes when all of them passed.

    Attributes:
        name: short and unique in a report, for instance ``decode_tokens_per_s >= 10``.
        threshold: the limit of the user that it is about.
        passed: None where it could not be judged, which does not spoil the verdict; `text` says why.
        text: the answer with the figures, one line.
    """

    kind: CheckKind
    name: str
    passed: bool | None
    text: str
    threshold: Threshold | None = None


class Comparison(Frozen):
    """A planned figure beside the measured one; `difference_percent` is positive where more was measured."""

    planned_bytes: int
    measured_bytes: int
    difference_percent: float


class ComponentComparison(Frozen):
    """A group of the plan's rows beside what was measured of it.

    Attributes:
        rows: names of the plan's rows in it.
        planned_bytes: their resident bytes.
        measured_bytes: None where it cannot be seen from outside.
        difference_percent: measured against planned; None where there is nothing to divide by.
    """

    name: str
    kind: Literal["file", "anonymous"]
    rows: tuple[str, ...]
    planned_bytes: int
    measured_bytes: int | None
    difference_percent: float | None


class PlanComparison(Frozen):
    """The planner's figures for the tokens that the runs filled, against the runs.

    Attributes:
        filled_tokens: the most tokens that a run had in its cache.
        components: every component, as far as the system can tell them apart.
        full_context_total_bytes: the plan of the package, for its whole context.
    """

    filled_tokens: int
    total: Comparison
    components: tuple[ComponentComparison, ...]
    full_context_total_bytes: int


class TextQuality(Frozen):
    """Quality on one text of a set."""

    name: str
    tokens: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity of the package over the reference's."""
        return self.perplexity / self.reference_perplexity


class QualityReport(Frozen):
    """A package against a reference, position by position of the same texts.

    Attributes:
        reference: a checkpoint that Transformers ran in float32, or another package.
        reference_sha256: fingerprint of its content, see `identity.reference_fingerprint`.
        reference_dtype: the numbers that a checkpoint ran in; None for a package.
        text_set: name of the built-in set, or the file.
        text_sha256: of what the texts say.
        kl_mean, kl_p99: KL(reference || package) in nats over all positions.
        top1_agreement: share of positions with the same most likely token; a position where the reference's own two
            best are within `near_tie_nats` of each other counts as agreement if the package chose either.
        strict_agreement: the same without that rule.
        near_ties: positions to which the rule applied.
        perplexity_ratio: of the package over the reference; 1 is no loss.
    """

    reference: str
    reference_kind: Literal["transformers", "package"]
    reference_sha256: str
    reference_dtype: str | None
    text_set: str
    text_sha256: str
    tokens: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    strict_agreement: float
    near_ties: int
    near_tie_nats: float
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float
    texts: tuple[TextQuality, ...]
    notes: tuple[str, ...] = ()


class GoldenAnswer(Frozen):
    """One golden prompt: what was asked, answered, and what was wrong with it (nothing when it passed)."""

    name: str
    prompt: str
    answer: str
    passed: bool
    failures: tuple[str, ...]


class GoldenReport(Frozen):
    """Answers of a package to prompts with known properties; `sha256` is that of `file`."""

    file: str
    sha256: str
    pass_rate: float
    answers: tuple[GoldenAnswer, ...]


class Advice(Frozen):
    """What to try next where the memory is what failed.

    Attributes:
        text: one line for people.
        suggestions: choices that fit the target by the plan, largest context first; none where the plan knows none.
    """

    text: str
    suggestions: tuple[Suggestion, ...] = ()


class PredictionBasis(Frozen):
    """What all predictions start from.

    Attributes:
        text: the formula and the figures of this machine in it, one line.
        efficiency: share of this machine's memory bandwidth that decode used; None where it is not known.
        withheld: why no speed is predicted for any device; None where speeds are.
        doubt: why the speeds are doubtful; None where they are not.
    """

    text: str
    efficiency: float | None
    withheld: str | None = None
    doubt: str | None = None


class Prediction(Frozen):
    """What arithmetic says about a device that was not measured. Never a measurement.

    Attributes:
        fits: the measured peak is within the memory that the device leaves to an application.
        decode_tokens_per_s: bandwidth x efficiency / bytes a step.
        read_bandwidth_bytes_per_s: of the device's profile; None where it has none.
        basis: what is special about this device, one line or nothing; what all share is in `PredictionBasis`.
    """

    device: str
    title: str
    limit_bytes: int
    fits: bool | None
    decode_tokens_per_s: float | None
    read_bandwidth_bytes_per_s: float | None
    basis: str


class MetricChange(Frozen):
    """A metric then and now.

    Attributes:
        change_percent: positive is worse; None from zero, of which there is no percentage.
        noise_percent: what is known of this metric, else half the spread of the noisier side in percent of the figure
            before; None where that is zero.
        regressed: worse by more than allowed, beyond the noise; None where that was not judged.
        unjudged: why it was not, though it is worse by more than allowed.
    """

    name: str
    better: Better
    before: float
    after: float
    change_percent: float | None
    noise_percent: float | None
    regressed: bool | None
    unjudged: Unjudged | None = None


class BaselineComparison(Frozen):
    """A report against an earlier one; `missing` are metrics that only the earlier one has."""

    file: str
    max_regression_percent: float
    forced: bool
    changes: tuple[MetricChange, ...]
    missing: tuple[str, ...] = ()


class Report(Frozen):
    """What a package did in fresh processes, and whether that is good enough.

    Attributes:
        verdict: every check passed.
        reasons: why; the first line says it all.
        notes: what to know when reading the figures.
        repetitions: measured processes.
        prompt_tokens: lengths of the prompts, shortest first: pseudo-random tokens, or words for LiteRT-LM.
        new_tokens: decode steps of each decode phase.
        threads: CPU threads that the runtime was told to use.
        metrics: all figures with their spread.
        checks: what was judged, in order of importance.
        processes: every worker, its phases and memory timeline.
        decode_steps_ms: every decode step of all runs by phase (``decode``, ``long decode``).
        memory_read_bytes_per_s: how fast this machine read its own memory, before each repetition.
        load: what else this machine did while the repetitions ran; None where it does not tell.
        advice: what to try next, where the memory is what failed.
        prediction_basis: what all `predictions` start from.
        config: the edgepack.toml that was obeyed; the command line goes before it.
        config_text: what stood in it, or its beginning.
        duration_s: the whole validation.
    """

    schema_version: Literal[5] = REPORT_SCHEMA_VERSION
    created: str
    subject: Subject
    runtime: str
    target: Target | None
    limit: LimitFacts
    verdict: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    repetitions: int
    prompt_tokens: tuple[int, ...]
    new_tokens: int
    threads: int
    metrics: tuple[Metric, ...]
    checks: tuple[Check, ...]
    processes: tuple[ProcessRecord, ...]
    decode_steps_ms: dict[str, tuple[float, ...]]
    memory_read_bytes_per_s: tuple[float, ...] = ()
    load: Load | None = None
    advice: Advice | None = None
    plan: PlanComparison | None
    quality: QualityReport | None = None
    golden: GoldenReport | None = None
    prediction_basis: PredictionBasis | None = None
    predictions: tuple[Prediction, ...] = ()
    baseline: BaselineComparison | None = None
    config: str | None = None
    config_text: str | None = None
    duration_s: float
    machine: Machine

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        # As of a plan: the samples of its memory timelines alone are pages.
        target = self.target.name if self.target else None
        facts = {"verdict": self.verdict, "reason": next(iter(self.reasons), ""), "target": target}
        return list((facts | {"runtime": self.runtime, "threads": self.threads}).items())
