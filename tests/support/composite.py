"""Runs the `run` steps of a composite GitHub Action on this machine, as a runner would, for the tests of `action.yml`.

Known: `env`, `if`, `id`, `working-directory`, outputs, step summary, the four operators and `always()`. A `uses` step
is recorded with its inputs and not run.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}")


@dataclass
class Job:
    """What became of the steps."""

    exit_code: int = 0
    ran: list[str] = field(default_factory=list)
    used: dict[str, dict[str, str]] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""
    log: str = ""


def run_action(
    action: dict[str, Any], folder: Path, *, inputs: dict[str, str], temp: Path, path: Path, env: dict[str, str],
    skip: tuple[str, ...] = (),
) -> Job:  # fmt: skip
    """Run `action` in the workspace `folder`; the names in `skip` count as done."""
    job = Job()
    unknown = inputs.keys() - action["inputs"].keys()
    assert not unknown, unknown
    context: dict[str, Any] = {
        "github": {"action_path": str(path)},
        "inputs": {name: inputs.get(name, about.get("default", "")) for name, about in action["inputs"].items()},
        "steps": {},
    }
    files = {name: temp / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    files["GITHUB_STEP_SUMMARY"].write_text("")
    runner = env | {name: str(file) for name, file in files.items()} | {"RUNNER_TEMP": str(temp)}
    for step in action["runs"]["steps"]:
        condition = step.get("if", "success()")
        if step["name"] in skip or (job.exit_code and "always()" not in condition) or not evaluate(condition, context):
            continue
        job.ran.append(step["name"])
        if "uses" in step:
            job.used[step["name"]] = {name: fill(value, context) for name, value in step["with"].items()}
            continue
        files["GITHUB_OUTPUT"].write_text("")
        done = _run(step, folder, runner, context)
        job.log += done.stdout
        job.exit_code = job.exit_code or done.returncode
        if "id" in step:
            context["steps"][step["id"]] = {"outputs": read_outputs(files["GITHUB_OUTPUT"].read_text())}
    job.outputs = {name: fill(about["value"], context) for name, about in action["outputs"].items()}
    job.summary = files["GITHUB_STEP_SUMMARY"].read_text()
    return job


def _run(
    step: dict[str, Any], folder: Path, runner: dict[str, str], context: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    assert step["shell"] == "bash"
    script = Path(runner["RUNNER_TEMP"]) / "step.sh"
    script.write_text(step["run"])
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=folder / fill(step.get("working-directory", "."), context),
        env=runner | {name: fill(value, context) for name, value in step.get("env", {}).items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )


def read_outputs(text: str) -> dict[str, str]:
    """What a step wrote to GITHUB_OUTPUT: ``name<<mark``, the value, ``mark``."""
    found = re.findall(r"^([\w-]+)<<(\w+)\n(.*?)\n\2$", text, re.DOTALL | re.MULTILINE)
    return {name: value for name, _, value in found}


def fill(text: str, context: dict[str, Any]) -> str:
    """`text` with its expressions evaluated."""
    return EXPRESSION.sub(lambda match: str(evaluate(match[1], context)), text)


def evaluate(expression: str, context: dict[str, Any]) -> Any:
    """An expression of GitHub's language, without brackets."""
    value: Any = ""
    for choice in expression.split("||"):
        for term in choice.split("&&"):
            value = _term(term.strip(), context)
            if not value:
                break
        if value:
            break
    return value


def _term(text: str, context: dict[str, Any]) -> Any:
    if text in ("always()", "success()"):
        return True
    for operator in ("==", "!="):
        left, found, right = text.partition(operator)
        if found:
            return (_term(left.strip(), context) == _term(right.strip(), context)) == (operator == "==")
    if text.startswith("'"):
        return text.strip("'")
    value: Any = context
    for name in text.split("."):
        value = value.get(name, "") if isinstance(value, dict) else ""
    return value
