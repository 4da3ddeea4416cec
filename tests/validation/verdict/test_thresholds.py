"""Thresholds and edgepack.toml: what people write, and what is said when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from edgepack.config import _EXPECTED, _OF_ONE_CALL, ExportTable, ValidateTable, read_config
from edgepack.errors import EdgepackError
from edgepack.validation.metrics import measured
from edgepack.validation.thresholds import make_threshold, parse_threshold
from edgepack.validation.verdict.judge import check_thresholds


@pytest.mark.parametrize(
    ("text", "operator", "value"),
    [
        ("decode_tokens_per_s >= 10", ">=", 10.0),
        ("ttft_ms@1024<=8s", "<=", 8000.0),
        ("peak_rss_bytes <= 1.9GB", "<=", 1.9e9),
        ("top1_agreement >= 95%", ">=", 0.95),
        ("itl_p99_ms <= 80ms", "<=", 80.0),
        ("kl_mean <= 0.5", "<=", 0.5),
        ("golden_pass_rate >= 1", ">=", 1.0),
        ("golden_pass_rate >= 100%", ">=", 1.0),
        ("perplexity_ratio <= 105%", "<=", 1.05),
        ("kl_worst_text <= 0.3", "<=", 0.3),
        ("kl_mean@hindi<=0.3", "<=", 0.3),
        ("top1_agreement@chat with tools >= 95%", ">=", 0.95),
    ],
)
def test_what_people_write(text: str, operator: str, value: float) -> None:
    threshold = parse_threshold(text)
    assert (threshold.operator, threshold.value) == (operator, pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed >= 10", "'speed' is no metric: expected one of package_bytes, "),
        ("decode_tokens_per_s@128 >= 10", "is no metric"),
        ("ttft_ms@x <= 10", "is no metric"),
        ("kl_mean@ <= 10", "expected a metric, <= or >=, and a value"),
        ("kl_worst_text@hindi <= 10", "is no metric: expected one of package_bytes, "),
        ("kl_mean@hindi 0.3", "expected a metric, <= or >=, and a value"),
        ("decode_tokens_per_s <= 10", "is better when higher: expected a limit with >="),
        ("decode_tokens_per_s 10", "expected a metric, <= or >=, and a value"),
        ("ttft_ms <= soon", "'soon' is no limit: expected a value such as 800ms or 2s"),
        ("peak_rss_bytes <= 8s", "'8s' is no limit"),
        ("peak_rss_bytes <= 1.9", "1.9 is no whole number of bytes: expected a value such as 1.9GB"),
        ("top1_agreement >= 95", "'95' is more than all of it: expected a share such as 95% or 0.95"),
        ("golden_pass_rate >= 101%", "'101%' is more than all of it"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(EdgepackError) as caught:
        parse_threshold(text)
    assert message in str(caught.value)


def test_a_metric_of_no_text() -> None:
    with pytest.raises(EdgepackError, match=r"^x: 'kl_mean@' is no metric: .*, kl_mean\[@TEXT\], "):
        make_threshold("kl_mean@", 1, "x")


def test_a_bare_limit_takes_the_natural_direction() -> None:
    assert make_threshold("decode_tokens_per_s", 10, "x").operator == ">="
    assert make_threshold("ttft_ms", "2s", "x").value == 2000.0
    assert make_threshold("peak_rss_bytes", 1900000000, "x").value == make_threshold("peak_rss_bytes", 1.9e9, "x").value


def test_a_miss_by_less_than_what_is_shown_is_told_apart() -> None:
    metrics = [measured("decode_tokens_per_s", [9.9964])]
    (check,) = check_thresholds([parse_threshold("decode_tokens_per_s >= 10")], metrics)
    assert check.passed is False
    assert check.text == "decode (decode_tokens_per_s) 9.9964 misses the limit >= 10"


def test_the_median_is_judged_and_what_was_not_measured_has_failed() -> None:
    metrics = [measured("ttft_ms@128", [90, 100, 400]), measured("ttft_ms@1024", [900])]
    texts = ("ttft_ms <= 100", "ttft_ms <= 95", "ttft_ms@1024 <= 800", "kl_mean <= 1")
    good, by_luck, slow, missing = check_thresholds([parse_threshold(text) for text in texts], metrics)
    assert good.passed and "(median of 3)" in good.text  # the shortest prompt is meant
    assert by_luck.passed is False  # the best run alone would have been within
    assert slow.passed is False and slow.kind == "latency" and "misses the limit <= 800 ms" in slow.text
    assert missing.passed is False and missing.kind == "quality" and "was not measured" in missing.text


def test_a_limit_on_one_text_and_on_the_worst() -> None:
    metrics = [
        measured("kl_mean@hindi", [1.43], text="hindi"),
        measured("kl_mean@english", [0.02], text="english"),
        measured("kl_mean", [0.1]),
        measured("kl_worst_text", [1.43], text="hindi"),
    ]
    texts = ("kl_mean@english <= 0.3", "kl_mean@hindi <= 0.3", "kl_mean <= 0.3", "kl_worst_text <= 0.3")
    english, hindi, every, worst = check_thresholds([parse_threshold(text) for text in texts], metrics)
    assert [check.passed for check in (english, hindi, every, worst)] == [True, False, True, False]
    assert hindi.name == "kl_mean@hindi <= 0.300 nats"
    assert hindi.text == (
        "mean KL divergence from the reference (kl_mean@hindi) 1.43 nats misses the limit <= 0.300 nats"
    )
    assert worst.text == (
        "mean KL divergence of the worst text (kl_worst_text) 1.43 nats on hindi misses the limit <= 0.300 nats"
    )


def test_of_a_peak_the_largest_is_judged() -> None:
    peaks = [measured("peak_rss_bytes", [300e6, 310e6, 420e6])]
    over, within = check_thresholds(
        [parse_threshold(f"peak_rss_bytes <= {size}") for size in ("419MB", "421MB")], peaks
    )
    assert (over.passed, within.passed) == (False, True)
    assert over.text == "peak RSS (peak_rss_bytes) 420 MB (largest of 3) misses the limit <= 419 MB"


def test_what_broke_off_leaves_its_thresholds_unmeasured() -> None:
    metrics = [measured("peak_rss_bytes", [300e6]), measured("ttft_ms@16", [90])]
    texts = ("peak_rss_bytes <= 1GB", "ttft_ms <= 100ms", "itl_p99_ms <= 5ms", "golden_pass_rate >= 50%")
    limits = [parse_threshold(text) for text in texts]
    peak, ttft, itl, golden = check_thresholds(limits, metrics, lambda metric: "run 2 did not come to its end")
    assert ttft.passed, "it was measured before"
    assert [check.passed for check in (peak, itl, golden)] == [False, False, False]
    assert [check.name for check in (peak, ttft, itl, golden)] == [str(limit) for limit in limits]
    assert itl.text == (
        "itl_p99_ms was not measured: run 2 did not come to its end (itl_p99_ms <= 5.00 ms is asked for)"
    )


CONFIG = """
target = "2GB"
[export]
checkpoint = "ckpt"
recipe = "int8"
out = "build/pkg"
[validate]
golden = "prompts.jsonl"
prompt_tokens = [128, 512]
[thresholds]
decode_tokens_per_s = 10
"ttft_ms@512" = "<= 2s"
"""


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    (tmp_path / "edgepack.toml").write_text(CONFIG)
    config = read_config(tmp_path / "edgepack.toml")
    assert config.export.checkpoint == str(tmp_path / "ckpt")
    assert config.export.out == tmp_path / "build/pkg"
    assert config.validate_.golden == tmp_path / "prompts.jsonl"
    assert (config.export.recipe, config.validate_.prompt_tokens, config.target) == ("int8", (128, 512), "2GB")
    assert [str(limit) for limit in config.threshold_list()] == [
        "decode_tokens_per_s >= 10.0 tok/s",
        "ttft_ms@512 <= 2,000 ms",
    ]


def test_without_a_file_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config().file is None
    (tmp_path / "edgepack.toml").write_text('target = "3GB"')
    assert read_config().target == "3GB"


def test_what_is_expected_is_known_of_every_key() -> None:
    tables: dict[str, type[BaseModel]] = {"export": ExportTable, "validate": ValidateTable}
    names = {f"{table}.{key}" for table, model in tables.items() for key in model.model_fields}
    names -= {f"validate.{key}" for key in _OF_ONE_CALL}
    assert set(_EXPECTED) == names | {"target", "export", "validate", "thresholds", "thresholds.*"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target = 'wach'", ": target 'wach' is not understood: expected a size"),
        ("[export]\nto = 'coreml'", ": export.to 'coreml' is not known: expected one of onnx"),
        (
            "[export]\nrecipe = 'int3'",
            ": export.recipe 'int3' is neither a built-in recipe (fp32, int4, int4-c",
        ),
        ("[validate]\nbaseline_missing = 'maybe'", 'validate.baseline_missing: expected "ok" for a first run'),
        ("[validate]\nspeed = 3", "validate.speed: no such key; expected package, runtime"),
        (
            "[validate]\nforce = true",
            "validate.force: no such key; expected package, runtime, threads, prompt_tokens, ",
        ),
        ("[thresholds]\nspeed = 3", "'speed' is no metric: expected one of package_bytes"),
        ("[thresholds]\nttft_ms = 'soon'", "'soon' is no limit"),
        ("[validate]\nrepeat = true", ": validate.repeat: expected a whole number of 1 to 1000, such as 3, got true"),
        ("[validate]\nrepeat = 1001", "validate.repeat: expected a whole number of 1 to 1000, such as 3, got 1001"),
        ("target = 2000000000", ': target: expected a size or a device, such as "2GB", got 2000000000'),
        ("target = ''", 'target is empty: expected a size or a device, such as "2GB"'),
        ("validate = 3", "validate: expected a table, [validate], got 3"),
        (
            "[validate]\nmax_regression = 0.05",
            'validate.max_regression: expected a share as a text, such as "5%", got 0.05',
        ),
        (
            "[validate]\nprompt_tokens = '16'",
            'validate.prompt_tokens: expected a list of whole numbers of at least 1, such as [128, 1024], got "16"',
        ),
        (
            "[validate]\nprompt_tokens = []",
            "validate.prompt_tokens: expected a list of whole numbers of at least 1, such",
        ),
        (
            "[validate]\nprompt_tokens = [16, 0]",
            "validate.prompt_tokens: expected a list of whole numbers of at least 1",
        ),
        ("[export]\nprefill = ['x']", "export.prefill: expected a list of whole numbers of at least 1"),
        ("[validate]\nreport = ''", 'validate.report is empty: expected a folder, such as "build/report"'),
        ("[export]\nout = ' '", 'export.out is empty: expected a folder, such as "build/package"'),
        (
            "[thresholds]\ndecode_tokens_per_s = true",
            ': thresholds.decode_tokens_per_s: expected a number or a text, such as 10 or "<= 1.9GB", got true',
        ),
        (
            "[thresholds]\npeak_rss_bytes = 1.9",
            ": thresholds.peak_rss_bytes: 1.9 is no whole number of bytes: expected a value such as",
        ),
        ("targets = '2GB'", "targets: no such key; expected target, export, validate, thresholds"),
        ("target = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "edgepack.toml"
    file.write_text(text)
    with pytest.raises(EdgepackError) as caught:
        read_config(file)
    assert message in str(caught.value) and str(file) in str(caught.value) and "\n" not in str(caught.value)
