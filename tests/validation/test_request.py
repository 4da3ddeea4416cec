"""What is asked of a validation: what cannot be used is refused before, under the name of its setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import EdgepackError, SettingError, about
from edgepack.validation.request import comparing_of, inputs_of, limits_of, measuring_of, target_of
from edgepack.validation.verdict.baseline import without_comparison
from tests.support.report_sample import passing


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    file = tmp_path / "base.json"
    file.write_text(passing().model_dump_json())
    return file


def compared(baseline: Path | None = None, regression: str | None = None, missing: str = "error", force: bool = False):
    return comparing_of(baseline, regression, missing, force)  # type: ignore[arg-type]


def test_a_first_run_has_nothing_to_compare_with_and_says_so(tmp_path: Path, earlier: Path) -> None:
    gone = tmp_path / "main" / "report.json"
    first = compared(gone, "4%", "ok")
    assert first.before is None and first.first_run == f"{str(gone)!r} is not there yet"
    assert compared(None, "4%", "ok").first_run == "no baseline was given"
    later = compared(earlier, "4%", "ok")
    assert (later.before, later.first_run, later.allowed_percent) == (passing(), None, 4.0)
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
        ({"missing": "perhaps"}, "baseline_missing", "is 'perhaps': expected ok or error"),
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
    for asked, setting, message in (
        ((None, words, None), "text", "is for the comparison with a reference, and none was given"),
        ((None, tmp_path, None), "text", "is no file: expected a text file"),
        ((None, None, empty), "golden", "is no file: expected golden prompts"),
        ((None, None, words), "golden", "line 1"),
        ((empty, None, None), "reference", "config.json"),
        ((tmp_path / "gone", None, None), "reference", "no such folder"),
    ):
        with pytest.raises(SettingError) as caught:
            inputs_of(*asked)
        assert caught.value.setting == setting and message in str(caught.value), str(caught.value)
    assert inputs_of(None, None, None).reference is None


def test_every_number_and_limit_names_its_setting() -> None:
    def measuring(**changes: Any) -> object:
        chosen = {"threads": 1, "prompt_tokens": (8,), "new_tokens": 2, "repeat": 1, "timeout_s": 9.0}
        return measuring_of(**{**chosen, "time_budget_s": 9.0, "enforce_limit": True, **changes})

    assert measuring()
    for name, value in (("new_tokens", 0), ("repeat", -3), ("prompt_tokens", (8, 0)), ("time_budget_s", 0.0)):
        with pytest.raises(SettingError) as caught:
            measuring(**{name: value})
        assert caught.value.setting == name
    with pytest.raises(SettingError, match=r"^timeout_s is nan: expected more than 0 seconds"):
        measuring(timeout_s=float("nan"))
    with pytest.raises(SettingError, match=r"^threshold 'swift >= 2': 'swift' is no metric"):
        limits_of(["swift >= 2"])
    with pytest.raises(SettingError, match=r"^target 'fridge' is not understood"):
        target_of("fridge")


def test_an_error_says_its_setting_once() -> None:
    for message, said in (("golden is empty", "golden is empty"), ("no prompts", "golden: no prompts")):
        with pytest.raises(SettingError) as caught, about("golden"):
            raise EdgepackError(message)
        assert str(caught.value) == said
    with pytest.raises(SettingError, match=r"^text x$"), about("golden"):
        raise SettingError("text", " x")  # which knows better
