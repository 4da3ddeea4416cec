"""`edgepack cache`: what first loads have left, and how to get rid of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from edgepack.cli.console import out, told_of_interruption
from edgepack.cli.options import JsonOption
from edgepack.errors import EdgepackError
from edgepack.shown import printable, shown
from edgepack.units import format_bytes, parse_bytes
from edgepack_runtimes.cache import cache_root
from edgepack_runtimes.cache_prune import LIMIT_VARIABLE, CacheEntry, limit_bytes, list_entries, prune

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

app = typer.Typer(
    name="cache",
    help="The packed weights that first loads leave: list them, remove them, say where they are.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _without_verb(context: typer.Context) -> None:
    # Typer's `no_args_is_help` makes a usage error of it.
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def parse_age(text: str) -> float:
    """Seconds of an age such as ``30d``, ``12h``, ``90m``, ``2w`` or ``45s``.

    Raises:
        EdgepackError: it is something else.
    """
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([smhdw])\s*", text.lower())
    if match is None:
        raise EdgepackError(f"age {shown(text)} is not understood: expected a number and s, m, h, d or w, such as 30d")
    return float(match[1]) * SECONDS[match[2]]


@app.command("path")
def print_path() -> None:
    """Print the folder. EDGEPACK_CACHE moves it."""
    typer.echo(str(cache_root()))


@app.command("list")
def list_command(json_output: JsonOption = False) -> None:
    """List every entry: the packages that use it, its size, when it was last used, and whether it is still needed."""
    root = cache_root()
    entries, limit = list_entries(root), limit_bytes(root)
    total = sum(entry.size_bytes for entry in entries)
    if json_output:
        facts = {"path": str(root), "limit_bytes": limit, "size_bytes": total}
        typer.echo(json.dumps({**facts, "entries": [_as_json(entry) for entry in entries]}))
        return
    if entries:
        out.print(_table(entries))
    of = "no limit" if limit is None else f"limit {format_bytes(limit)}"
    count = "1 entry" if len(entries) == 1 else f"{len(entries)} entries"
    out.print(f"{printable(str(root), 1000)}: {count}, {format_bytes(total)}, {of} ({LIMIT_VARIABLE})")


@app.command("prune")
def prune_command(
    everything: Annotated[bool, typer.Option("--all", help="Remove every entry that no process has open.")] = False,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Also what was not used for 30d, 12h or 2w.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="SIZE", help="Leave at most this much, in place of the limit.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Remove what no package uses any more, what killed processes left, and the longest unused beyond the limit."""
    root = cache_root()
    limit = limit_bytes(root) if max_size is None else parse_bytes(max_size)
    age_s = None if older_than is None else parse_age(older_than)
    try:
        with told_of_interruption(lambda: None if dry_run else "what was removed is gone, and the rest is whole"):
            done = prune(root, limit=limit, older_than_s=age_s, everything=everything, dry_run=dry_run)
    except OSError as error:
        raise EdgepackError(f"cache {root} cannot be pruned: {error.strerror or error}") from error
    if json_output:
        facts: dict[str, Any] = {"path": str(root), "dry_run": dry_run, "limit_bytes": limit}
        facts |= {"freed_bytes": done.freed_bytes, "left_bytes": done.left_bytes}
        removed, kept = map(_as_json, done.removed), map(_as_json, done.kept)
        typer.echo(json.dumps({**facts, "removed": [*removed], "kept_in_use": [*kept]}))
        return
    verb = "would remove" if dry_run else "removed"
    for entry in done.removed:
        out.print(f"{verb} {format_bytes(entry.size_bytes)}, {entry.status}, {_packages(entry, ', ')}")
    for entry in done.kept:
        out.print(f"in use, kept: {format_bytes(entry.size_bytes)}, {_packages(entry, ', ')}")
    out.print(f"{verb} {format_bytes(done.freed_bytes)}, {format_bytes(done.left_bytes)} left")


def _as_json(entry: CacheEntry) -> dict[str, Any]:
    return {
        "entry": entry.path.name,
        "status": entry.status,
        "runtime": entry.runtime,
        "packages": entry.packages,
        "size_bytes": entry.size_bytes,
        "last_used": datetime.fromtimestamp(entry.used_s, UTC).isoformat(timespec="seconds"),
        "in_use": entry.in_use,
    }


def _table(entries: Sequence[CacheEntry]) -> Table:
    table = Table()
    table.add_column("packages", overflow="fold")
    for heading in ("runtime", "size", "last used", "status"):
        table.add_column(heading, justify="right" if heading == "size" else "left", no_wrap=True)
    for entry in entries:
        age = "in use" if entry.in_use else f"{_age(time.time() - entry.used_s)} ago"
        table.add_row(_packages(entry, "\n"), entry.runtime or "?", format_bytes(entry.size_bytes), age, entry.status)
    return table


def _packages(entry: CacheEntry, separator: str) -> str:
    named = separator.join(printable(_short(package), 1000) for package in entry.packages)
    return named or f"entry {entry.path.name}"


def _short(path: str) -> str:
    """As the user would write it: from the folder where he is, if it is below."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        return path
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"
