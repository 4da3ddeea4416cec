"""The published JSON schema of report.json; `python -m edgepack.report.schema docs/report.schema.json` writes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgepack.validation.result import REPORT_SCHEMA_VERSION, Report


def schema_text() -> str:
    """The schema of what `Report.model_dump_json` writes, with a line break at its end."""
    schema = Report.model_json_schema(mode="serialization")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"edgepack validation report, version {REPORT_SCHEMA_VERSION}",
    }
    return json.dumps({**schema, **head}, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    if len(sys.argv) == 2:
        Path(sys.argv[1]).write_text(schema_text(), encoding="utf-8")
    else:
        sys.stdout.write(schema_text())
