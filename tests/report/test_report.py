"""The four faces of a report: complete, well-formed, escaped, and the same figures in each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from markdown_it import MarkdownIt

from edgepack.errors import EdgepackError
from edgepack.report.charts import memory_timeline, nice_ticks
from edgepack.report.html import render_html
from edgepack.report.junit import render_junit
from edgepack.report.markdown import render_markdown
from edgepack.report.schema import schema_text
from edgepack.report.terminal import render_terminal
from edgepack.report.words import figure, limit_warning, spread
from edgepack.report.write import write_reports
from edgepack.units import format_number, format_percent
from edgepack.validation.figures.collect import largest, representative
from edgepack.validation.metrics import measured
from edgepack.validation.records import LimitFacts
from edgepack.validation.result import GoldenAnswer, GoldenReport, Report
from tests.support.paths import ROOT
from tests.support.report_sample import CALIBRATED_BY, EVIL, SAMPLES, failing, minimal, passing, process

MARKDOWN_TAGS = {*("h2", "h3", "h4", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "blockquote")}
MARKDOWN_TAGS |= {"details", "summary"}
VOID = {"meta", "link", "br", "hr", "img"}
every_sample = pytest.mark.parametrize("make", SAMPLES.values(), ids=SAMPLES)


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects what a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "xlink:href")
        ]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@every_sample
def test_html_is_well_formed_and_loads_nothing(make: Callable[[], Report]) -> None:
    text = render_html(make())
    page = Page(text)
    assert page.open == []
    assert page.loads == ["data:,"]
    assert not {"script", "iframe", "img", "object", "embed"} & set(page.tags)
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= before + 1 for before, later in pairwise(levels))
    assert page.tags.count("title") == 1
    assert all("aria-label=" in svg for svg in re.findall(r'<svg class="chart[^>]*>', text))


def test_html_shows_everything() -> None:
    report = failing()
    said = " ".join(" ".join(Page(render_html(report)).words).split())
    for wanted in ("FAIL", report.reasons[0], "Limit not enforced", "Predictions, not measurements", "should fit"):
        assert wanted in said
    for wanted in ("93.4 %", "6.79 tok/s", "2.18 GB", "limit 3.00 GB", "p95", "16.2 % worse", "google/gemma-3n-E2B-it"):
        assert wanted in said
    assert "alert('x')" in said, "the answer is shown, as text"


def test_an_enforced_limit_brings_no_warning() -> None:
    assert "Limit not enforced" not in render_html(passing()) + render_markdown(passing())
    assert "Limit not enforced" in render_markdown(failing())
    assert limit_warning(minimal().limit) is None
    assert "not even watched" in str(limit_warning(LimitFacts(method="none", enforced=False, limit_bytes=5)))


@every_sample
def test_markdown_tables_are_whole_and_nothing_is_markup(make: Callable[[], Report]) -> None:
    report = make()
    text = render_markdown(report)
    first = text.splitlines()[0]
    assert first.startswith("## ") and ("PASS" if report.verdict else "FAIL") in first
    assert MarkdownIt().renderInline(report.reasons[0])[:20] in MarkdownIt().render(first)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(columns) == 1, block
    assert text.count("<details>") == text.count("</details>")
    page = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    assert page.open == []
    assert set(page.tags) <= MARKDOWN_TAGS
    assert page.loads == []


def test_markdown_stays_below_the_limit_of_a_step_summary() -> None:
    answers = tuple(
        GoldenAnswer(name=f"n{i}", prompt="<|" * 50_000, answer="&" * 500_000, passed=False, failures=("x" * 10_000,))
        for i in range(200)
    )
    report = failing().model_copy(
        update={
            "golden": GoldenReport(file="f", sha256="", pass_rate=0, answers=answers),
            "notes": ("<" * 5_000,) * 1_000,
            "config_text": "#" * 1_000_000,
            "processes": tuple(process(f"run {i}") for i in range(60)),
        }
    )
    text = render_markdown(report)
    assert len(text.encode()) < 600_000
    assert "175 more are in report.json." in text


@every_sample
def test_junit_counts_and_states(make: Callable[[], Report]) -> None:
    report = make()
    root = ElementTree.fromstring(render_junit(report).encode())
    (suite,) = root
    cases = suite.findall("testcase")
    assert len(cases) == len(report.checks) == int(suite.attrib["tests"])
    for state, tag, total in ((False, "failure", "failures"), (None, "skipped", "skipped")):
        wanted = sum(check.passed is state for check in report.checks)
        assert len(suite.findall(f"testcase/{tag}")) == int(suite.attrib[total]) == int(root.attrib[total]) == wanted
    assert [case.attrib["classname"] for case in cases] == [f"edgepack.{check.kind}" for check in report.checks]
    assert len({(case.attrib["classname"], case.attrib["name"]) for case in cases}) == len(cases)
    assert suite.attrib["timestamp"] == "2026-11-24T15:49:03"
    properties = {item.attrib["name"]: item.attrib["value"] for item in suite.iterfind("properties/property")}
    for metric in report.metrics:
        assert float(properties[f"{metric.name}.value"]) == metric.figure


def test_junit_keeps_cases_of_the_same_name_apart() -> None:
    report = passing()
    twice = report.model_copy(update={"checks": (*report.checks, *report.checks), "created": "yesterday"})
    (suite,) = ElementTree.fromstring(render_junit(twice).encode())
    assert len({(case.attrib["classname"], case.attrib["name"]) for case in suite.iter("testcase")}) == 10
    assert "timestamp" not in suite.attrib


def test_the_settings_are_shown_with_their_text() -> None:
    report = failing().model_copy(update={"config": "ci/edgepack.toml", "config_text": "repeat = 7 # <i>"})
    for face in (render_markdown(report), render_html(report)):
        shown = face[face.index("Settings that were obeyed, ci/edgepack.toml; the command line goes before them") :]
        assert "<pre" in shown and "repeat = 7 # &lt;i&gt;" in shown
    for face in (render_markdown(passing()), render_html(passing())):
        assert "Settings that were obeyed" not in face


def test_hostile_text_is_text_in_every_face() -> None:
    report = failing()
    assert "\x00" in EVIL and "<script>" in EVIL
    for text in (render_html(report), render_markdown(report), render_junit(report)):
        assert "<script" not in text
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
        assert "&lt;script&gt;" in text
    assert "</pre></details>&lt;" not in render_html(report)


@every_sample
def test_the_published_schema_describes_the_json(make: Callable[[], Report], tmp_path: Path) -> None:
    published = (ROOT / "docs/report.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(), "run python -m edgepack.report.schema docs/report.schema.json"
    schema = json.loads(published)
    jsonschema.Draft202012Validator.check_schema(schema)
    report = make()
    written = json.loads(write_reports(report, tmp_path)[0].read_text(encoding="utf-8"))
    jsonschema.validate(written, schema)
    assert Report.model_validate(written) == report
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**written, "verdict": "yes"}, schema)


def test_the_schema_is_a_module_to_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgepack.report.schema"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    subprocess.run([*command, str(tmp_path / "s.json")], check=True, env=environment)
    assert printed.stdout == (tmp_path / "s.json").read_text(encoding="utf-8") == schema_text()


def test_reports_replace_older_ones_and_leave_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "reports"
    assert write_reports(passing(), folder) == write_reports(minimal(), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html",
        "report.json",
        "report.junit.xml",
        "report.md",
    ]
    assert "FAIL" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(EdgepackError, match=r"reports cannot be written to .*file") as caught:
        write_reports(minimal(), tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_a_far_limit_does_not_flatten_the_chart() -> None:
    assert "far above this chart" in memory_timeline(process("run 1"), 100_000_000_000)
    assert "far above this chart" not in memory_timeline(process("run 1"), 3_000_000_000)
    assert 'class="limit"' not in memory_timeline(process("run 1"), None)


def test_a_system_that_tells_only_rss_still_gets_a_chart() -> None:
    known = process("run 1")
    nothing = {"anonymous_bytes": None, "file_bytes": None, "charged_bytes": None}
    bare = known.model_copy(update={"timeline": tuple(moment.model_copy(update=nothing) for moment in known.timeline)})
    chart = memory_timeline(bare.model_copy(update={"phases": ()}), None)
    assert 'class="whole"' in chart and 'class="rss"' in chart and 'class="anonymous"' not in chart
    one = bare.model_copy(update={"timeline": bare.timeline[:1], "failure": "killed", "phases": ()})
    assert "nan" not in memory_timeline(one, 1)


def test_extreme_figures_draw_no_broken_chart() -> None:
    report = failing()
    assert report.plan and report.baseline
    nothing = report.plan.total.model_copy(update={"planned_bytes": 0, "measured_bytes": 0})
    change = report.baseline.changes[0].model_copy(update={"change_percent": float("inf"), "before": 0.0})
    extreme = report.model_copy(
        update={
            "decode_steps_ms": {"none": (), "one": (5.0,), "zero": (0.0, 0.0), "far": (1.0,) * 500 + (1e6,)},
            "plan": report.plan.model_copy(update={"components": (), "total": nothing, "full_context_total_bytes": 0}),
            "baseline": report.baseline.model_copy(update={"changes": (change,), "max_regression_percent": 0.0}),
            "metrics": (measured("decode_tokens_per_s", [0.0]), measured("perplexity_ratio", [float("inf")])),
        }
    )
    page = render_html(extreme)
    assert not re.search(r'="(?:nan|-?inf)%?"', page)
    assert page.count("Time of a decode step: ") == 3
    assert render_markdown(extreme) and render_junit(extreme)


def test_figures_are_said_with_units() -> None:
    assert [format_number(value) for value in (0, 0.0412, 9, 9.15, 86.2, 9840, 0.00004)] == [
        "0", "0.041", "9.00", "9.15", "86.2", "9,840", "4e-05",
    ]  # fmt: skip
    assert format_percent(99.97) == "99.9 %" and format_percent(100) == "100.0 %"
    assert spread(measured("itl_p50_ms", [86, 87.1])) == "86.0 to 87.1 ms"
    assert spread(measured("peak_rss_bytes", [990e6, 1.2e9])) == "990 MB to 1.20 GB"
    assert figure(None, "ms") == "-" and figure(3, "count") == "3"
    assert nice_ticks(0, 23.5) == [0, 5, 10, 15, 20] and nice_ticks(4, 4) == [4]


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: str, second: str) -> float:
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1, 2], ids=["light", "dark", "print"])
def test_colours_have_the_contrast_of_wcag_aa(scheme: int) -> None:
    css = (ROOT / "edgepack/report/templates/report.css").read_text(encoding="utf-8")
    roots = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{([^}]*)\}", css)]
    colours = {**roots[0], **roots[scheme]}
    for ink in ("ink", "muted"):
        for back in ("page", "card", "tint"):
            assert _contrast(colours[ink], colours[back]) >= 4.5, (ink, back)
    for state in ("pass", "fail", "unsure"):
        assert _contrast(colours[state], colours[f"{state}-back"]) >= 4.5, state
    for line in ("rss", "limit", "charged", "anonymous", "range"):
        assert _contrast(colours[line], colours["card"]) >= 3, line
    for banner in ("head-pass", "head-fail"):
        assert _contrast(colours[banner], "#ffffff") >= 4.5, banner
    for fill in re.findall(r"\.c\d \{ fill: (#\w{6})", css):
        assert _contrast(fill, "#1b1f24") >= 4.5, fill


def test_a_run_stands_for_all_though_the_first_load_needs_more() -> None:
    report = passing()
    run = next(process for process in report.processes if process.purpose.startswith("run"))
    packing = run.model_copy(update={"purpose": "first load", "peak_rss_bytes": 2 * (run.peak_rss_bytes or 0)})
    assert representative((packing, run)) is run and largest((packing, run)) is packing
    assert representative((packing,)) is packing and representative(()) is None
    page = render_html(report.model_copy(update={"processes": (packing, run)}))
    assert page.index(f"Memory over time: {run.purpose}") < page.index("Memory over time: first load")
    assert "with that which packs the weights for this CPU" in page


def test_predictions_share_one_formula_and_one_doubt() -> None:
    report = failing()
    assert report.prediction_basis is not None and report.advice is not None
    page = " ".join(" ".join(Page(render_html(report)).words).split())
    text = render_markdown(report).replace("\\", "")
    for face in (page, text):
        assert face.count("redicted tok/s = read bandwidth of the device x efficiency") == 1
        assert face.count("The predicted speeds are doubtful: not a quiet machine: other processes took 22.4 %") == 1
        assert "14.2 tok/s, doubtful" in face
        assert "Try next: export again with --recipe int4 --context 2048" in face
    withheld = report.prediction_basis.model_copy(update={"withheld": "it is too loud here", "doubt": None})
    for render in (render_html, render_markdown):
        said = render(report.model_copy(update={"prediction_basis": withheld})).replace("\\", "")
        assert "No speed is predicted: it is too loud here." in said and "doubtful" not in said


def test_every_face_says_which_calibration_a_package_has_and_nothing_where_it_has_none() -> None:
    def faces(report: Report) -> list[str]:
        page = " ".join(" ".join(Page(render_html(report)).words).split())
        terminal = "\n".join(str(part) for part in render_terminal(report))
        return [page, render_markdown(report).replace("\\", ""), render_junit(report), terminal]

    for face in faces(failing()):
        assert face.count(CALIBRATED_BY) == 1
    for face in (*faces(passing()), passing().subject.model_dump_json(exclude_none=True)):
        assert "calibrat" not in face
    assert json.loads(failing().model_dump_json())["subject"]["calibration"]["sha256"] == "5eed" * 16


def test_the_same_peak_is_said_everywhere() -> None:
    report = passing()
    said = " ".join(" ".join(Page(render_html(report)).words).split())
    tile = re.search(r"peak RSS (\S+ GB)", said[said.index("peak RSS 2.19") :])
    assert tile is not None and tile[1] == "2.19 GB", "the largest of 2.184, 2.179 and 2.191 GB"
    row = next(line for line in render_markdown(report).splitlines() if line.startswith("| peak RSS |"))
    assert row.startswith("| peak RSS | 2.19 GB | 2.18 to 2.19 GB | 3 |")
    assert 'name="peak_rss_bytes.value" value="2191000000.0"' in render_junit(report)
