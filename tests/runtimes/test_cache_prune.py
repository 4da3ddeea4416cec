"""What goes from the cache and what stays: stale and damaged entries, the longest unused, and what is not ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgepack.errors import EdgepackError
from edgepack.package.folder import MANIFEST, FileEntry, Package, open_package
from edgepack_runtimes import cache_files, cache_prune
from edgepack_runtimes.cache import CacheSpec, cached_entry, entry_key
from edgepack_runtimes.cache_prune import CacheEntry, limit_bytes, list_entries, prune
from tests.support.cache_stand_in import build, copied, spec
from tests.support.paths import ROOT
from tests.support.tiny import TinyPackages

PATHS = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))
DAY = 86_400.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EDGEPACK_CACHE_LIMIT", "0")
    return tmp_path / "cache"


@pytest.fixture
def package(tiny_packages: TinyPackages) -> Package:
    return tiny_packages("gemma3").package


def by_status(cache: Path) -> dict[str, list[CacheEntry]]:
    found: dict[str, list[CacheEntry]] = {}
    for entry in list_entries(cache):
        found.setdefault(entry.status, []).append(entry)
    return found


def test_the_longest_unused_goes_first(package: Package, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    entries = [build(package, f"r{age}", used_s=now - age * DAY) for age in (3, 1, 2)]
    size = list_entries(cache)[0].size_bytes
    monkeypatch.setenv("EDGEPACK_CACHE_LIMIT", f"{3 * size + 10}B")
    cached_entry(package, spec("r3")).close()  # used again: no longer the oldest
    newest = build(package, "new")
    assert {entry.path for entry in list_entries(cache)} == {entries[0], entries[1], newest}


def test_the_one_just_built_stays_though_it_is_larger_than_the_limit(
    package: Package, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(package, "small")
    monkeypatch.setenv("EDGEPACK_CACHE_LIMIT", "5KB")
    held = cached_entry(package, spec("large", 9000))
    assert [entry.path for entry in list_entries(cache)] == [held.path]


def test_what_was_not_used_for_a_while_goes(package: Package, cache: Path) -> None:
    old = build(package, "old", used_s=time.time() - 40 * DAY)
    young = build(package, "young", used_s=time.time() - 20 * DAY)
    rehearsed = prune(cache, limit=None, older_than_s=30 * DAY, dry_run=True)
    assert [entry.path for entry in rehearsed.removed] == [old] and old.is_dir()
    assert prune(cache, limit=None, older_than_s=30 * DAY) == rehearsed
    assert [entry.path for entry in list_entries(cache)] == [young]


def test_an_entry_is_stale_when_its_last_owner_is_gone(package: Package, cache: Path, tmp_path: Path) -> None:
    one, two = copied(package, tmp_path / "one"), copied(package, tmp_path / "two")
    entry = build(one, "r")
    assert build(two, "r") == entry
    (one.path / MANIFEST).unlink()
    assert [found.packages for found in by_status(cache)["complete"]] == [(str(two.path),)]
    # Its folder is there, with another model in it.
    text = (two.path / MANIFEST).read_text()
    sha256 = next(file.sha256 for file in package.manifest.files if file.path == "config.json")
    (two.path / MANIFEST).write_text(text.replace(sha256, "0" * 64))
    (stale,) = by_status(cache)["stale"]
    assert set(stale.packages) == {str(one.path), str(two.path)}
    assert [found.path for found in prune(cache, limit=None).removed] == [entry]


def test_another_version_of_the_runtime_replaces_an_entry_once_all_have_moved(
    package: Package, cache: Path, tmp_path: Path
) -> None:
    one, two = copied(package, tmp_path / "one"), copied(package, tmp_path / "two")
    before = build(one, "r")
    build(two, "r")
    other = build(one, "another runtime")
    after = cached_entry(one, spec("r", version="2")).path
    assert {entry.path: entry.packages for entry in list_entries(cache)} == {
        before: (str(two.path),),
        other: (str(one.path),),
        after: (str(one.path),),
    }
    cached_entry(two, spec("r", version="2"))
    assert {entry.path for entry in list_entries(cache)} == {other, after}


def test_leftovers_go_and_nothing_that_is_not_ours(package: Package, cache: Path, tmp_path: Path) -> None:
    keep = build(package, "r")
    damaged = build(package, "damaged")
    (damaged / "w").write_bytes(b"short")
    partial, removed = cache / f"{2:032x}.partial", cache / f"{3:032x}.old-{4:032x}"
    elsewhere = tmp_path / "elsewhere"
    not_ours = [cache / name for name in ("photos", "deadbeef", f"{5:032x}", f"{6:032x}.partial-7", "x.partial")]
    for folder in (partial, removed, elsewhere, *not_ours):
        folder.mkdir()
        (folder / "content").write_text("x")
    (elsewhere / cache_files.RECORD).write_text("{}")
    link, file = cache / f"{8:032x}", cache / f"{9:032x}"
    link.symlink_to(elsewhere)
    file.write_text("a file")
    assert {entry.path for entry in by_status(cache)["orphan"]} == {partial, removed, damaged}
    prune(cache, limit=1, everything=True, dry_run=True)
    assert len(list_entries(cache)) == 4
    prune(cache, limit=None)
    assert {path.name for path in cache.iterdir()} == {
        keep.name,
        link.name,
        file.name,
        cache_files.FOLDER_LOCK,
        *(path.name for path in not_ours),
    }
    prune(cache, limit=1, everything=True)
    assert (elsewhere / "content").is_file() and all((folder / "content").is_file() for folder in not_ours)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"owners": 3}', '{"owners": [1], "runtime": "r", "sources": {}, "files": {}}', "\xff" * 9],
)
def test_a_record_that_is_none_makes_an_orphan(content: str, package: Package, cache: Path) -> None:
    entry = build(package, "r")
    (entry / cache_files.RECORD).write_text(content, encoding="latin-1")
    assert [found.path for found in by_status(cache)["orphan"]] == [entry]
    assert build(package, "r") == entry and set(by_status(cache)) == {"complete"}


# -- keys and the limit


def test_the_key_is_what_the_packed_bytes_depend_on(package: Package) -> None:
    def key(changed: CacheSpec, path: str, sha256: str) -> str:
        files = (
            FileEntry(path="config.json", size_bytes=3, sha256=sha256),
            FileEntry(path=path, size_bytes=1, sha256="b" * 64),
        )
        manifest = package.manifest.model_copy(update={"files": files, "versions": {"edgepack": sha256[:1]}})
        return entry_key(Package(package.path / path, manifest), changed)

    same = key(spec("r"), "README", "a" * 64)
    assert same == key(spec("r", 5), "LICENSE", "a" * 64)
    others = {key(spec("q"), "x", "a" * 64), key(spec("r", version="2"), "x", "a" * 64), key(spec("r"), "x", "c" * 64)}
    assert len(others | {same}) == 4


@pytest.mark.parametrize(
    ("text", "limit"),
    [("10GB", 10**10), ("1.5 GiB", 3 * 2**29), ("0", None), ("none", None), ("OFF", None), ("700000000", 700_000_000)],
)
def test_the_variable_sets_the_limit(text: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE_LIMIT", text)
    assert limit_bytes(tmp_path) == limit


@pytest.mark.parametrize(("total", "limit"), [(32 * 10**9, 8 * 10**9), (10**12, 20 * 10**9)])
def test_by_default_a_small_disk_gives_a_quarter(
    total: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEPACK_CACHE_LIMIT", raising=False)
    usage = cache_prune.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache_prune.shutil, "disk_usage", lambda path: usage._replace(total=total))
    assert limit_bytes(tmp_path / "not" / "there") == limit


@pytest.mark.parametrize("text", ["many", "10 apples", "-1GB"])
def test_a_limit_that_is_none_is_refused_before_anything_is_packed(
    text: str, package: Package, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE_LIMIT", text)
    with pytest.raises(EdgepackError, match=r"EDGEPACK_CACHE_LIMIT: .*expected .*or 0 for no limit"):
        cached_entry(package, spec("r"))
    assert not cache.exists()


# -- the command


def test_the_commands_say_what_stands_there(package: Package, cache: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgepack.cli.main", "cache", *arguments]
        environment = {**os.environ, "PYTHONPATH": PATHS, "COLUMNS": "200"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert run("path").stdout == f"{cache}\n"
    assert json.loads(run("list", "--json").stdout) == {
        "path": str(cache), "limit_bytes": None, "size_bytes": 0, "entries": [],
    }  # fmt: skip
    one = copied(package, tmp_path / "one")
    held, gone = cached_entry(package, spec("first")), build(one, "second")
    (one.path / MANIFEST).unlink()
    listed = json.loads(run("list", "--json").stdout)["entries"]
    facts = {row["entry"]: (row["runtime"], row["packages"], row["status"], row["in_use"]) for row in listed}
    assert facts == {
        held.path.name: ("first", [str(package.path)], "complete", True),
        gone.name: ("second", [str(one.path)], "stale", False),
    }
    table = run("list").stdout
    assert "in use" in table and "stale" in table and str(one.path) in table and "2 entries" in table
    rehearsed = json.loads(run("prune", "--all", "--dry-run", "--json").stdout)
    assert [row["entry"] for row in rehearsed["removed"]] == [gone.name] and gone.is_dir()
    assert [row["entry"] for row in rehearsed["kept_in_use"]] == [held.path.name]
    assert f", stale, {one.path}\n" in run("prune").stdout and not gone.exists() and held.path.is_dir()
    for arguments, words in ((["--older-than", "soon"], "age 'soon'"), (["--max-size", "big"], "size 'big'")):
        refused = run("prune", *arguments)
        assert refused.returncode == 2 and words in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_the_opened_package_is_the_owner(package: Package, cache: Path) -> None:
    build(open_package(package.path), "r")
    assert by_status(cache)["complete"][0].packages == (str(package.path.resolve()),)
