"""Reports as a validation makes them: one that passed, one that failed with all parts filled, one that died at load."""

from __future__ import annotations

import random

from edgepack.package.folder import CalibrationSource
from edgepack.planning.plan import Target
from edgepack.validation.figures.components import ComponentComparison
from edgepack.validation.machine import Machine
from edgepack.validation.metrics import Metric, measured
from edgepack.validation.records import LimitFacts, Moment, PhaseMemory, ProcessRecord
from edgepack.validation.result import (
    Advice,
    BaselineComparison,
    Check,
    CheckKind,
    Comparison,
    GoldenAnswer,
    GoldenReport,
    MetricChange,
    PlanComparison,
    Prediction,
    PredictionBasis,
    QualityReport,
    Report,
    Subject,
    TextQuality,
)
from edgepack.validation.thresholds import parse_threshold

CALIBRATED_BY = "16,384 tokens in sequences of 512, sha256 5eed5eed5eed"
EVIL = "<script>alert('x')</script> | `a` **b** @root \x00\x1b[31m"
CALIBRATION = CalibrationSource(
    sha256="5eed" * 16, text=f"text {EVIL}", text_sha256="7e87" * 16, tokens=16_384, sequence_tokens=512
)
LIMIT_BYTES = 3_000_000_000
MACHINE = Machine(
    cpu="Raspberry Pi 5 Model B Rev 1.0",
    architecture="aarch64",
    system="Linux-6.12.25+rpt-rpi-2712-aarch64-with-glibc2.36",
    cores=4,
    ram_bytes=8_063_000_000,
    versions={"python": "3.11.7", "edgepack": "0.1.0", "onnxruntime": "1.32.0"},
)
# name, seconds, anonymous and file-backed megabytes at its end
PHASES = (
    ("load", 2.1, 420, 1350),
    ("warm-up", 0.4, 470, 1380),
    ("prefill 16", 0.5, 480, 1400),
    ("prefill 128", 1.4, 520, 1420),
    ("prefill 1024", 9.8, 690, 1450),
    ("decode", 4.2, 640, 1470),
    ("long decode", 5.1, 700, 1480),
)


def process(purpose: str, seed: int = 0, *, died_in: str | None = None) -> ProcessRecord:
    """A worker's memory that grows from phase to phase."""
    noise, time_ms, level = random.Random(seed), 0.0, (20.0, 60.0)
    moments, phases = [], []
    for name, seconds, anonymous, file in PHASES:
        start = time_ms
        for step in range(25):
            share = (step + 1) / 25
            now = [level[0] + share * (anonymous - level[0]), level[1] + share * (file - level[1])]
            now[0] += noise.uniform(0, 40) if "prefill" in name else noise.uniform(0, 4)
            time_ms = start + 1000 * seconds * share
            anonymous_bytes, file_bytes = int(now[0] * 1e6), int(now[1] * 1e6)
            rss_bytes = anonymous_bytes + file_bytes + 4_000_000
            moments.append(
                Moment(
                    time_ms=time_ms,
                    rss_bytes=rss_bytes,
                    anonymous_bytes=anonymous_bytes,
                    file_bytes=file_bytes,
                    charged_bytes=int(rss_bytes * 1.04) + 30_000_000,
                )
            )
        level = (anonymous, file)
        own = moments[-25:]
        peak = max(own, key=lambda moment: moment.rss_bytes)
        phases.append(
            PhaseMemory(
                phase=name,
                start_ms=start,
                end_ms=time_ms,
                peak_rss_bytes=peak.rss_bytes,
                rss_bytes=peak.rss_bytes,
                anonymous_bytes=peak.anonymous_bytes,
                file_bytes=peak.file_bytes,
                shared_bytes=4_000_000,
                most_anonymous_bytes=max(moment.anonymous_bytes or 0 for moment in own),
                pss_bytes=peak.rss_bytes - 20_000_000,
                charged_bytes=max(moment.charged_bytes or 0 for moment in own),
                major_faults=512 if name == "load" else 0,
            )
        )
        if name == died_in:
            break
    return ProcessRecord(
        purpose=purpose,
        failure="killed by the kernel (out of memory)" if died_in else None,
        peak_rss_bytes=max(moment.rss_bytes for moment in moments),
        phases=tuple(phases),
        timeline=tuple(moments),
    )


def _metrics(*, slower: float = 1.0) -> tuple[Metric, ...]:
    return (
        measured("package_bytes", [2_410_000_000]),
        measured("peak_rss_bytes", [2_184_000_000, 2_179_000_000, 2_191_000_000]),
        measured("peak_pss_bytes", [2_164_000_000, 2_160_000_000, 2_171_000_000]),
        measured("peak_anonymous_bytes", [704_000_000, 702_500_000, 705_100_000]),
        measured("peak_charged_bytes", [2_301_000_000, 2_298_000_000, 2_309_000_000]),
        measured("first_load_ms", [9_840]),
        measured("cold_load_ms", [6_120]),
        measured("warm_load_ms", [2_104, 2_098, 2_131]),
        measured("warm_up_ms", [404, 398, 411]),
        measured("ttft_ms@16", [512, 508, 530]),
        measured("ttft_ms@128", [1_412, 1_398, 1_450]),
        measured("ttft_ms@1024", [9_840, 9_790, 10_020]),
        measured("prefill_tokens_per_s@1024", [104.1, 104.6, 102.2]),
        measured("decode_tokens_per_s", [11.4 / slower, 11.2 / slower, 11.5 / slower]),
        measured("itl_p50_ms", [86.2 * slower, 87.1 * slower, 86.0 * slower]),
        measured("itl_p95_ms", [98.4 * slower, 99.0 * slower, 97.1 * slower]),
        measured("itl_p99_ms", [121.0 * slower, 119.2 * slower, 127.7 * slower]),
        measured("long_decode_tokens_per_s", [9.1 / slower, 9.0 / slower, 9.15 / slower]),
        measured("decode_major_faults", [0, 0, 3]),
    )


def _steps(mean_ms: float, seed: int) -> tuple[float, ...]:
    noise = random.Random(seed)
    return (*(mean_ms + noise.gauss(0, 3) + noise.expovariate(0.25) for _ in range(189)), mean_ms * 3.1)


def _plan() -> PlanComparison:
    def part(name: str, kind: str, rows: tuple[str, ...], planned: int, measured_mb: int | None) -> ComponentComparison:
        return ComponentComparison.model_validate(
            {
                "name": name,
                "kind": kind,
                "rows": rows,
                "planned_bytes": planned * 1_000_000,
                "measured_bytes": None if measured_mb is None else measured_mb * 1_000_000,
                "difference_percent": None if measured_mb is None else 100 * (measured_mb / planned - 1),
            }
        )

    return PlanComparison(
        filled_tokens=1_088,
        total=Comparison(planned_bytes=2_098_000_000, measured_bytes=2_184_000_000, difference_percent=4.1),
        components=(
            part("weights", "file", ("attention", "ffn", "head"), 1_290, 1_312),
            part("looked-up rows", "file", ("embed", "ple"), 96, 110),
            part("libraries", "file", ("runtime, code",), 62, 58),
            part("KV cache", "anonymous", ("KV cache, sliding layers", "KV cache, full layers"), 118, 118),
            part("activations", "anonymous", ("activations",), 342, None),
            part("runtime, heap", "anonymous", ("runtime, heap",), 190, 231),
        ),
        full_context_total_bytes=2_391_000_000,
    )


def _base(verdict: bool, reasons: tuple[str, ...]) -> dict[str, object]:
    return {
        "created": "2026-11-24T15:49:03+00:00",
        "subject": Subject(
            path="packages/gemma3n-e2b-int4",
            model="gemma3n, 30 layers",
            backend="onnx",
            recipe="int4",
            context_tokens=4096,
            fingerprint="9f2c" * 16,
            disk_bytes=2_410_000_000,
        ),
        "runtime": "onnx",
        "target": Target(name="phone-6gb", limit_bytes=LIMIT_BYTES),
        "limit": LimitFacts(method="cgroup v2", enforced=True, limit_bytes=LIMIT_BYTES),
        "verdict": verdict,
        "reasons": reasons,
        "notes": ("The page cache was not dropped before the warm loads: that is what warm means.",),
        "repetitions": 3,
        "prompt_tokens": (16, 128, 1024),
        "new_tokens": 64,
        "threads": 4,
        "metrics": _metrics(),
        "processes": (
            process("first load", 1),
            process("cold load", 2),
            *(process(f"run {i}", 3 + i) for i in (1, 2, 3)),
        ),
        "decode_steps_ms": {"decode": _steps(86, 1), "long decode": _steps(108, 2)},
        "plan": _plan(),
        "duration_s": 184.2,
        "machine": MACHINE,
    }


def limited(kind: CheckKind, name: str, passed: bool | None, text: str) -> Check:
    """A check of the threshold that it is named after."""
    return Check(kind=kind, name=name, passed=passed, text=text, threshold=parse_threshold(name))


def passing() -> Report:
    """Enforced limit, every check passed or not judged; no quality, baseline or prediction was asked for."""
    reasons = ("fits phone-6gb: peak RSS 2.18 GB of 3.00 GB, 816 MB to spare", "decodes 11.4 tok/s, asked for 8")
    checks = (
        Check(kind="run", name="every process came to its end", passed=True, text="5 of 5"),
        limited("ram", "peak_rss_bytes <= 3GB", True, "peak RSS 2.18 GB within 3.00 GB, enforced"),
        limited("latency", "decode_tokens_per_s >= 8", True, "11.4 tok/s (11.2 to 11.5 in 3 runs)"),
        limited("latency", "ttft_ms@1024 <= 12000", True, "9,840 ms (9,790 to 10,020 in 3 runs)"),
        limited("quality", "top1_agreement >= 0.9", None, "not measured: no reference was given"),
    )
    return Report.model_validate({**_base(True, reasons), "checks": checks})


def failing() -> Report:
    """Everything filled, much of it hostile; the limit was only watched."""
    reasons = ("decode 6.8 tok/s is below the 8 that were asked for", "2 golden answers failed", f"read {EVIL}")
    checks = (
        Check(kind="run", name="every process came to its end", passed=False, text="run 3: killed by the kernel"),
        limited("ram", "peak_rss_bytes <= 3GB", True, "peak RSS 2.18 GB within 3.00 GB, watched"),
        limited("latency", "decode_tokens_per_s >= 8", False, "6.79 tok/s (6.67 to 6.85)"),
        limited("latency", "ttft_ms@1024 <= 12000", True, "9,840 ms"),
        limited("quality", "top1_agreement >= 0.9", True, "93.4 %"),
        Check(kind="quality", name="golden", passed=False, text="1 of 3 answers pass"),
        Check(kind="regression", name="itl_p50_ms", passed=False, text="16.2 % worse, 5 % allowed"),
        Check(kind="regression", name=f"weird {EVIL}", passed=None, text=f"too few runs {EVIL}"),
    )
    quality = {
        "kl_mean": measured("kl_mean", [0.0412]),
        "kl_p99": measured("kl_p99", [0.38]),
        "top1_agreement": measured("top1_agreement", [0.934]),
        "perplexity_ratio": measured("perplexity_ratio", [1.031]),
        "golden_pass_rate": measured("golden_pass_rate", [1 / 3]),
    }
    base = _base(False, reasons)
    subject = base["subject"]
    assert isinstance(subject, Subject)
    base |= {
        "subject": subject.model_copy(update={"path": f"packages/{EVIL}/{'long' * 30}", "calibration": CALIBRATION}),
        "limit": LimitFacts(
            method="sampled",
            enforced=False,
            limit_bytes=LIMIT_BYTES,
            why="/sys/fs/cgroup is read-only in this container",
        ),
        "checks": checks,
        "metrics": (*_metrics(slower=1.68), *quality.values()),
        "processes": (process("first load", 1), process("run 1", 4), process("run 3", 6, died_in="prefill 1024")),
        "notes": (f"note {EVIL}", "The governor was powersave: figures of latency are lower bounds."),
        "quality": _quality(),
        "golden": _golden(),
        "prediction_basis": PredictionBasis(
            text="predicted tok/s = read bandwidth of the device x efficiency / bytes a step, 1.98 GB; efficiency 0.61 "
            "here = 6.79 tok/s x 1.98 GB a step / 22.0 GB/s read with 4 threads",
            efficiency=0.61,
            doubt=f"not a quiet machine: other processes took 22.4 % of its cores' time {EVIL}",
        ),
        "predictions": _predictions(),
        "advice": Advice(text=f"export again with --recipe int4 --context 2048 {EVIL}"),
        "baseline": _baseline(),
        "config": f"ci/{EVIL}/edgepack.toml",
        "config_text": f'target = "phone-6gb"\n\n[checks]\ndecode_tokens_per_s = ">= 8"\n# {EVIL}\n',
    }
    return Report.model_validate(base)


def _quality() -> QualityReport:
    texts = tuple(
        TextQuality(
            name=name,
            tokens=512,
            kl_mean=kl,
            kl_p99=9 * kl,
            top1_agreement=agreement,
            perplexity=12.1 + 40 * kl,
            reference_perplexity=11.9,
        )
        for name, kl, agreement in (("prose", 0.031, 0.951), ("code", 0.028, 0.962), (f"dialogue {EVIL}", 0.064, 0.89))
    )
    return QualityReport(
        reference="google/gemma-3n-E2B-it",
        reference_kind="transformers",
        reference_sha256="5e" * 32,
        reference_dtype="float32",
        text_set="builtin",
        text_sha256="7e" * 32,
        tokens=1536,
        kl_mean=0.0412,
        kl_p99=0.38,
        top1_agreement=0.934,
        strict_agreement=0.918,
        near_ties=61,
        near_tie_nats=0.05,
        perplexity=13.74,
        reference_perplexity=13.33,
        perplexity_ratio=1.031,
        texts=texts,
        notes=("The reference ran in float32.",),
    )


def _golden() -> GoldenReport:
    answers = (
        GoldenAnswer(name="capital", prompt="Capital of France?", answer="Paris.", passed=True, failures=()),
        GoldenAnswer(
            name=f"html {EVIL}",
            prompt=f"Write a page.\n\n```html\n{EVIL}\n```",
            answer=f"</pre></details>{EVIL}\n\n| a | b |\n``` \n# heading",
            passed=False,
            failures=(f"must not contain '<script>' {EVIL}",),
        ),
        GoldenAnswer(name="arabic", prompt="قل مرحبا", answer="مرحبا", passed=False, failures=("shorter than 20",)),
    )
    return GoldenReport(file="golden.toml", sha256="60" * 32, pass_rate=1 / 3, answers=answers)


def _predictions() -> tuple[Prediction, ...]:
    return (
        Prediction(
            device="pixel-8",
            title="Pixel 8 (8 GB)",
            limit_bytes=4_000_000_000,
            fits=True,
            decode_tokens_per_s=14.2,
            read_bandwidth_bytes_per_s=51.2e9,
            basis="efficiency 0.55 used, at most 0.55 without a dot product instruction: an upper bound",
        ),
        Prediction(
            device="old",
            title="A phone of 3 GB",
            limit_bytes=1_200_000_000,
            fits=False,
            decode_tokens_per_s=None,
            read_bandwidth_bytes_per_s=None,
            basis="no speed predicted: the profile has no bandwidth",
        ),
    )


def _baseline() -> BaselineComparison:
    def change(
        name: str, better: str, before: float, after: float, worse: float, regressed: bool | None
    ) -> MetricChange:
        return MetricChange.model_validate(
            {
                "name": name,
                "better": better,
                "before": before,
                "after": after,
                "change_percent": worse,
                "noise_percent": 1.3,
                "regressed": regressed,
                "unjudged": "few runs" if regressed is None else None,
            }
        )

    return BaselineComparison(
        file="reports/main/report.json",
        max_regression_percent=5,
        forced=True,
        changes=(
            change("peak_rss_bytes", "lower", 2_231_000_000, 2_184_000_000, -2.1, False),
            change("itl_p50_ms", "lower", 124.6, 144.8, 16.2, True),
            change("decode_tokens_per_s", "higher", 6.9, 6.79, 1.6, False),
            change("cold_load_ms", "lower", 5_900, 6_120, 3.7, None),
            change("package_bytes", "lower", 2_410_000_000, 2_410_000_000, 0, False),
        ),
    )


def minimal() -> Report:
    """The first process died while it loaded: hardly anything is known."""
    base = _base(False, ("first load: killed by the kernel while loading",))
    base |= {
        "target": None,
        "limit": LimitFacts(method="none", enforced=False, limit_bytes=None),
        "notes": (),
        "metrics": (),
        "checks": (Check(kind="run", name="first load", passed=False, text="killed by signal 9 while loading"),),
        "processes": (
            ProcessRecord(purpose="first load", failure="signal 9", peak_rss_bytes=None, phases=(), timeline=()),
        ),
        "decode_steps_ms": {},
        "plan": None,
    }
    return Report.model_validate(base)


SAMPLES = {"passing": passing, "failing": failing, "minimal": minimal}
