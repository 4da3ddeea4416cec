"""What is asked of a validation: what cannot be used is refused before, under the name of its setting."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from edgepack.cli.validating.validate import command
from edgepack.errors import EdgepackError, SettingError, about
from edgepack.validation.request import comparing_of, require_inputs, require_measurable
from edgepack.validation.settings import EXPECTED, GivenSettings, ValidationSettings, settings_of
from edgepack.validation.verdict.baseline import Baseline, without_comparison
from tests.support.report_sample import passing

OPTIONS = inspect.signature(command).parameters


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    file = tmp_path / "base.json"
    file.write_text(passing().model_dump_json())
    return file


def compared(baseline: Path | None = None, regression: str | None = None, missing: str = "error", force: bool = False):
    given = {"baseline": baseline, "max_regression": regression, "baseline_missing": missing, "force": force}
    return comparing_of(settings_of(given))


def test_a_first_run_has_nothing_to_compare_with_and_says_so(tmp_path: Path, earlier: Path) -> None:
    gone = tmp_path / "main" / "report.json"
    first = compared(gone, "4%", "ok")
    assert first.baseline is None and first.first_run == f"{str(gone)!r} is not there yet"
    assert compared(None, "4%", "ok").first_run == "no baseline was given"
    later = compared(earlier, "4%", "ok")
    assert later.baseline == Baseline(str(earlier), passing(), 4.0) and later.first_run is None
    assert compared().first_run is None, "nobody asked"


def test_a_first_run_excuses_no_baseline_that_is_there(tmp_path: Path) -> None:
    broken = tmp_path / "base.json"
    broken.write_text("{}")
    for wrong in (broken, tmp_path):
        with pytest.raises(SettingError, match=rf"^baseline {wrong} ") as caught:
            compared(wrong, missing="ok")
        assert caught.value.setting == "baseline"


def test_a_first_run_spoils_no_verdict_and_a_comparison_that_failed_does() -> None:
    first = without_comparison(passing(), "first run: nothing to compare with", passed=None)
    assert first.verdict and first.checks[-1].passed is None and first.checks[-1].kind == "regression"
    failed = without_comparison(passing(), "not compared with base.json: gone", passed=False)
    assert not failed.verdict and failed.reasons == ("not compared with base.json: gone",)


@pytest.mark.parametrize(
    ("asked", "setting", "message"),
    [
        (
            {"regression": "6%"},
            "max_regression",
            "is for the comparison with a baseline, and none was given: add --bas",
        ),
        ({"force": True}, "force", "is for the comparison with a baseline, and none was given: add --baseline FILE"),
        ({"force": True, "missing": "ok"}, "force", "is for the comparison with a baseline, and none was given: add"),
        ({"regression": "lots"}, "max_regression", "'lots' is not understood: expected a share such as 5%"),
        ({"missing": "perhaps"}, "baseline_missing", "is 'perhaps': expected \"ok\" for a first run that"),
        ({"baseline": Path("no/where.json")}, "baseline", "no/where.json cannot be read: No such file or directory"),
        ({"baseline": Path("/")}, "baseline", "/ cannot be read: Is a directory"),
    ],
)
def test_a_wrong_comparison_names_its_setting(asked: dict[str, Any], setting: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        compared(**asked)
    assert caught.value.setting == setting
    assert str(caught.value).startswith(f"{setting} {message}")
    missing = asked.get("baseline") == Path("no/where.json") or ("regression" in asked and "none was given" in message)
    assert ("--baseline-missing ok" in str(caught.value)) == missing


def test_inputs_are_looked_at_before_the_minutes(tmp_path: Path) -> None:
    words, empty = tmp_path / "words.txt", tmp_path / "empty"
    words.write_text("some words")
    empty.mkdir()
    asked: dict[str, Path]
    for asked, setting, message in (
        ({"text": words}, "text", "is for the comparison with a reference, and none was given"),
        ({"text": tmp_path}, "text", "is no file: expected a text file"),
        ({"golden": empty}, "golden", "is no file: expected golden prompts"),
        ({"golden": words}, "golden", "line 1"),
        ({"reference": empty}, "reference", "config.json"),
        ({"reference": tmp_path / "gone"}, "reference", "no such folder"),
    ):
        with pytest.raises(SettingError) as caught:
            require_inputs(settings_of(asked))
        assert caught.value.setting == setting and message in str(caught.value), str(caught.value)
    require_inputs(settings_of({}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"new_tokens": 0}, "new_tokens is 0: expected a whole number of at least 1"),
        ({"repeat": -3}, "repeat is -3: expected a whole number of 1 to 1000"),
        ({"repeat": True}, "repeat is True: expected a whole number of 1 to 1000"),
        ({"prompt_tokens": (8, 0)}, "prompt_tokens is (8, 0): expected a list of whole numbers of at least 1"),
        ({"prompt_tokens": True}, "prompt_tokens is True: expected a list of whole numbers of at least 1"),
        ({"prompt_tokens": []}, "prompt_tokens is []: expected a list of whole numbers of at least 1"),
        ({"time_budget_s": 0.0}, "time_budget_s is 0: expected more than 0 seconds"),
        *(
            ({"timeout_s": value}, f"timeout_s is {value:g}: expected more than 0 seconds and at most 604,800, which")
            for value in (0.0, -1.0, 1e10, float("inf"), float("nan"))
        ),
        ({"threads": 0}, "threads is 0: expected 1"),
        ({"thresholds": ["swift >= 2"]}, "threshold 'swift >= 2': 'swift' is no metric"),
        ({"target": 1.5}, "target is 1.5: expected a size or a device"),
        ({"speed": 3}, "speed: no such setting; expected target, runtime, threads, "),
    ],
)
def test_a_wrong_setting_is_one_line_that_begins_with_its_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        settings_of(given)
    assert str(caught.value).startswith(message) and caught.value.setting == message.split()[0].rstrip(":")


def test_python_may_give_one_where_several_are_taken() -> None:
    settings = settings_of({"prompt_tokens": 16, "thresholds": "ttft_ms <= 1"})
    assert settings.prompt_tokens == (16,) and str(settings.thresholds[0]) == "ttft_ms <= 1.00 ms"
    assert settings_of({"timeout_s": 604_800, "reference": Path("a/b"), "text": "c"}).reference == "a/b"


def test_every_setting_is_known_to_its_three_sides() -> None:
    fields = set(ValidationSettings.model_fields)
    assert fields == set(EXPECTED) == set(GivenSettings.__annotations__)
    assert fields <= {{"threshold": "thresholds", "no_limit": "enforce_limit"}.get(name, name) for name in OPTIONS}


def test_an_error_says_its_setting_once() -> None:
    for message, said in (("golden is empty", "golden is empty"), ("no prompts", "golden: no prompts")):
        with pytest.raises(SettingError) as caught, about("golden"):
            raise EdgepackError(message)
        assert str(caught.value) == said
    with pytest.raises(SettingError, match=r"^text x$"), about("golden"):
        raise SettingError("text", " x")  # which knows better


def test_a_limit_on_a_text_needs_that_text() -> None:
    def require(limit: str, **given: Any) -> None:
        require_measurable(settings_of({"thresholds": limit, "reference": "demo", **given}), ())

    require("kl_mean@hindi <= 0.3")
    require("kl_worst_text <= 0.3", text="my.txt")
    with pytest.raises(
        SettingError, match=r"^threshold kl_mean@hind <= 0.300 nats needs a text of that name: .* hindi, "
    ):
        require("kl_mean@hind <= 0.3")
    with pytest.raises(SettingError, match=r"needs the built-in texts, and --text gives another one: leave one of the"):
        require("kl_mean@hindi <= 0.3", text="my.txt")
