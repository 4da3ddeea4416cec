"""The four faces of a validation: JSON for programs, Markdown for a step summary, JUnit for a test tab, HTML for eyes.

All are made of one value, `edgepack.validation.result.Report`. docs/reports.md tells what stands where.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from edgepack.atomic_write import write_whole
from edgepack.errors import EdgepackError
from edgepack.report.html import render_html
from edgepack.report.junit import render_junit
from edgepack.report.markdown import render_markdown
from edgepack.validation.result import Report


def require_writable(what: str, folder: Path) -> None:
    """Refuse a folder in which nothing could be written, before the minutes that measuring takes. It leaves no trace.

    Args:
        what: what is to be written there, for the error.

    Raises:
        EdgepackError: a file cannot be made there, or in the nearest folder above that exists.
    """
    try:
        place = Path(os.path.realpath(folder))  # a link may lead to a folder that is not there yet
        while not place.exists() and place != place.parent:
            place = place.parent
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise EdgepackError(
            f"{what} cannot be written to {folder}: {error.strerror or error}; choose another folder"
        ) from error


def write_reports(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write report.json, report.md, report.junit.xml and report.html into `folder`, which is made if it is missing.

    All are rendered before the first is written, and each replaces an older one in one step.

    Raises:
        EdgepackError: the folder cannot be written.
    """
    texts = {
        "report.json": report.model_dump_json(indent=2) + "\n",
        "report.md": render_markdown(report),
        "report.junit.xml": render_junit(report),
        "report.html": render_html(report),
    }
    try:
        Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_whole(folder / name, text)
    except OSError as error:
        raise EdgepackError(
            f"reports cannot be written to {folder}: {error.strerror or error}; choose another folder"
        ) from error
    return tuple(folder / name for name in texts)
