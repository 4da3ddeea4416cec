"""What the GitHub Action runs: `edgepack export`, then `edgepack validate`, with outputs and a step summary.

Usage: action.py export|validate. Every input comes as an environment variable ``EDGEPACK_<NAME>`` and goes on as one
argument: no shell reads it. The exit code is that of edgepack.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgepack.config import read_config
from edgepack.errors import EdgepackError

EXPORT_OPTIONS = (
    *("out", "config", "to", "runtime", "recipe", "target", "context", "prefill", "revision", "threads"),
    *("calibration", "calibrate"),
)
VALIDATE_OPTIONS = (
    "config",
    "target",
    "runtime",
    "threads",
    "prompt-tokens",
    "new-tokens",
    "repeat",
    "reference",
    "text",
    "golden",
    "baseline",
    "baseline-missing",
    "max-regression",
    "history",
)
REPORT_FILES = ("report.json", "report.md", "report.junit.xml", "report.html")
CONFIG_NAME = "edgepack.toml"
DEFAULT_OUT = "edgepack-package"
DEFAULT_REPORT = "edgepack-report"
ANSWER_NO, UNUSABLE = 1, 2
# GitHub drops a whole summary above 1 MiB, and the summaries of earlier steps of the job are not counted in it.
SUMMARY_BYTES = 1_000_000


def export() -> int:
    options = {name: value for name in EXPORT_OPTIONS if (value := given(name))}
    if "out" not in options and "config" not in options and not Path(CONFIG_NAME).is_file():
        options["out"] = DEFAULT_OUT
    checkpoint = given("checkpoint")
    arguments = ["export", "--json", "--overwrite", *spelled(options)]
    code, text, error = edgepack(arguments + (["--", checkpoint] if checkpoint else []))
    done = document(text) if code in (0, ANSWER_NO) else None
    if done is None:
        stopped("export", code, error)
        return code or UNUSABLE
    if code == 0:
        size, peak = done["size_bytes"], done["peak_rss_bytes"]
        print(f"{done['package']}: {size:,} bytes, written in {done['seconds']} s with a peak RSS of {peak:,} bytes")
        output("package", str(Path(done["package"]).resolve()))
        output("package-bytes", str(size))
        output("export-peak-rss-bytes", str(peak))
    else:
        output("verdict", "no")
        refused = "\n".join(misses(done))
        print(refused)
        summarize(f"## edgepack: not exported\n\n{refused}\n")
    return code


def document(text: str) -> dict[str, Any] | None:
    """The JSON that `edgepack` wrote; None where it was killed before, or never came so far."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def report_folder() -> Path:
    """That of the input, else that of the settings, else `DEFAULT_REPORT`."""
    if chosen := given("report-dir"):
        return Path(chosen).resolve()
    configured = None
    with suppress(EdgepackError):  # edgepack itself tells what is wrong with the file
        configured = read_config(Path(given("config")) if given("config") else None).validate_.report
    return (configured or Path(DEFAULT_REPORT)).resolve()


def misses(plan: dict[str, Any]) -> list[str]:
    """Why a plan misses its target and what would fit, a line each."""
    target, total = plan["target"], sum(row["resident_bytes"] for row in plan["rows"])
    lines = [f"The plan needs {total:,} bytes, the target {target['name']} has {target['limit_bytes']:,}."]
    return lines + [
        f"- would fit: recipe {nearby['recipe']}, context {nearby['context_tokens']} ({nearby['total_bytes']:,} bytes)"
        for nearby in plan["suggestions"]
    ]


def validate() -> int:
    options = {name: value for name in VALIDATE_OPTIONS if (value := given(name))}
    folder = report_folder()
    for name in REPORT_FILES:
        with suppress(OSError):  # a folder that is none is told by edgepack
            (folder / name).unlink()  # a report of an earlier run is no report of this one
    limits = [f"--threshold={line.strip()}" for line in given("thresholds").splitlines() if line.strip()]
    package = given("package")
    arguments = ["validate", f"--report={folder}", *spelled(options), *limits]
    code, _, error = edgepack(arguments + (["--", package] if package else []), show=True)
    report = read_report(folder) if code in (0, ANSWER_NO) else None
    if report is None:
        stopped("validate", code, error)
        return code or UNUSABLE
    values = {metric["name"]: metric["values"] for metric in report["metrics"]}
    output("verdict", "yes" if report["verdict"] else "no")
    output("report", str(folder))
    output("package", str(Path(report["subject"]["path"]).resolve()))
    output("peak-rss-bytes", str(round(max(values["peak_rss_bytes"]))) if values.get("peak_rss_bytes") else "")
    speed = values.get("decode_tokens_per_s")
    output("decode-tokens-per-s", f"{statistics.median(speed):.2f}" if speed else "")
    summarize((folder / "report.md").read_text(encoding="utf-8"))
    if code == ANSWER_NO:
        annotate("; ".join(report["reasons"][:1]) or "the verdict is no")
    return code


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report that this run wrote; None where there is none, or no whole one."""
    try:
        return document((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def edgepack(arguments: list[str], *, show: bool = False) -> tuple[int, str, str]:
    """Run edgepack; return its exit code, what it wrote to stdout (nothing with `show`) and its error line."""
    environment = {**os.environ, "COLUMNS": "120"}
    if given("token"):
        environment["HF_TOKEN"] = given("token")  # not an argument, which every process of the machine can read
    environment.pop("EDGEPACK_TOKEN", None)
    command = [str(Path(sys.executable).with_name("edgepack")), *arguments]
    print("edgepack", *arguments, flush=True)
    error = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as kept:
        stdout = None if show else kept
        with subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr or ():
                sys.stderr.write(line)
                if line.startswith("error: "):
                    error = line.strip()
        kept.seek(0)
        code = process.returncode
        return code if code >= 0 else 128 - code, kept.read(), error  # as a shell tells a signal


def given(name: str) -> str:
    return os.environ.get("EDGEPACK_" + name.upper().replace("-", "_"), "").strip()


def spelled(options: dict[str, str]) -> list[str]:
    """As ``--name=value``, so that a value may start with a dash."""
    return [f"--{name}={value}" for name, value in options.items()]


def stopped(verb: str, code: int, error: str) -> None:
    """Say that there is no answer: the input was not usable, or edgepack was killed."""
    reason = error.removeprefix("error: ") or f"exit code {code}, see the log"
    annotate(reason)
    summarize(f"## edgepack: {verb} stopped\n\n```\n{reason}\n```\n")


def output(name: str, value: str) -> None:
    mark = uuid.uuid4().hex  # a value with line breaks cannot become a second output
    append("GITHUB_OUTPUT", f"{name}<<{mark}\n{value}\n{mark}\n")


def summarize(markdown: str) -> None:
    cut = markdown.encode()[:SUMMARY_BYTES].decode(errors="ignore")
    append("GITHUB_STEP_SUMMARY", cut + ("" if cut == markdown else "\n\n(cut: the whole report is in the artifact)\n"))


def append(variable: str, text: str) -> None:
    if file := os.environ.get(variable):
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write(text)


def annotate(message: str) -> None:
    escaped = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    print(f"::error title=edgepack::{escaped}", flush=True)


if __name__ == "__main__":
    sys.exit({"export": export, "validate": validate}[sys.argv[1]]())
