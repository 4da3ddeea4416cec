"""A package is whole or absent, and what was changed, cut or smuggled in is named when it is opened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import EdgepackError, PackageError
from edgepack.package import folder as package_module
from edgepack.package.folder import MANIFEST, Package, open_package, package_folder
from tests.support.paths import ROOT
from tests.support.tiny import TinyPackages

DEAD_PID = 2**22 + 7  # above the largest number that Linux gives


@pytest.fixture
def package(tiny_packages: TinyPackages, tmp_path: Path) -> Package:
    """A package of this test's own, to damage."""
    shutil.copytree(tiny_packages("gemma3_untied").package.path, tmp_path / "package")
    return open_package(tmp_path / "package", verify=True)


def write(out: Path, content: str, *, overwrite: bool = False) -> None:
    with package_folder(out, overwrite=overwrite) as folder:
        (folder / MANIFEST).write_text(content)


def content(out: Path) -> str:
    return (out / MANIFEST).read_text()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- writing


def test_a_package_appears_at_the_end_and_nothing_else_stays(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with package_folder(out, overwrite=False) as folder:
        (folder / MANIFEST).write_text("new")
        assert folder.parent == out.parent
        assert not out.exists()
    assert content(out) == "new"
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_inside_leaves_things_as_they_were(
    error: type[BaseException], existing: bool, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if existing:
        write(out, "old")

    def fail() -> None:
        with package_folder(out, overwrite=True) as folder:
            (folder / MANIFEST).write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["out"] if existing else [])
    assert not existing or content(out) == "old"


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(PackageError, match=r"out exists; choose another folder or pass --overwrite"):
        write(tmp_path / "out", "new")
    assert content(tmp_path / "out") == "old"


def test_overwrite_keeps_the_old_package_until_the_new_one_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with package_folder(out, overwrite=True) as folder:
        (folder / MANIFEST).write_text("new")
        assert content(out) == "old"
    assert content(out) == "new"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "new", overwrite=True)
    assert content(tmp_path / "out") == "new"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_package_is_never_overwritten(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
    else:
        out.write_text("years of work")
    with pytest.raises(PackageError, match="is not a package, so it is never replaced"):
        write(out, "new", overwrite=True)
    assert names(tmp_path) == ["out"]
    assert (out / "thesis.tex" if kind == "folder" else out).read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageError, match=r"output .*file/out cannot be written"):
        write(tmp_path / "file" / "out", "new")


@pytest.mark.parametrize("kind", ["package", "empty folder", "nothing"])
def test_an_output_that_is_a_link_stays_one(kind: str, tmp_path: Path) -> None:
    disk, link = tmp_path / "disk" / "v1", tmp_path / "current"
    disk.parent.mkdir()
    if kind == "package":
        write(disk, "old")
    elif kind == "empty folder":
        disk.mkdir()
    link.symlink_to(Path("disk", "v1"))
    write(link, "new", overwrite=kind != "nothing")
    assert link.readlink() == Path("disk", "v1")
    assert content(disk) == "new"
    assert names(tmp_path) == ["current", "disk"]
    assert names(disk.parent) == ["v1"]


def test_a_link_to_a_package_is_not_overwritten_without_being_asked_to(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(PackageError, match="link exists"):
        write(tmp_path / "link", "new")
    assert content(tmp_path / "real") == "old"


def test_links_in_a_circle_and_names_that_no_system_takes(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for out in (tmp_path / "a", tmp_path / "nul\0l", tmp_path / ("long" * 80)):
        with pytest.raises(PackageError, match="cannot be written"):
            write(out, "new")
    with pytest.raises(EdgepackError, match=r"out\\udcff.*not UTF-8|out\\xff.*not UTF-8"):
        write(tmp_path / os.fsdecode(b"out\xff"), "new")
    assert names(tmp_path) == ["a", "b"]


def test_a_mount_point_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path).endswith("volume"))
    with pytest.raises(PackageError, match="is a mount point, which cannot be replaced; choose a folder inside it"):
        write(tmp_path / "volume", "new", overwrite=True)
    write(tmp_path / "volume" / "package", "new")


def test_the_folder_that_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(Path(), "new", overwrite=True)
    assert content(tmp_path / "here") == "new"


def test_leftovers_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    kept = [f"out.partial-{os.getppid()}", "out.partial-notes", "out2.partial-4194311", "out"]
    for name in (*kept[:-1], f"out.partial-{DEAD_PID}", f"out.partial-{2**70}"):
        (tmp_path / name).mkdir()
    write(tmp_path / "out", "new")
    assert names(tmp_path) == sorted(kept)


def test_names_with_glob_characters_are_names(tmp_path: Path) -> None:
    (tmp_path / f"out[1].partial-{DEAD_PID}").mkdir()
    (tmp_path / f"out1.partial-{DEAD_PID}").mkdir()
    write(tmp_path / "out[1]", "new")
    assert names(tmp_path) == [f"out1.partial-{DEAD_PID}", "out[1]"]


def test_a_leftover_of_our_own_number_is_from_an_earlier_process(tmp_path: Path) -> None:
    # In a container every run may have the same number.
    leftover = tmp_path / f"out.partial-{os.getpid()}"
    leftover.mkdir()
    (leftover / "half").write_text("x")
    write(tmp_path / "out", "new")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == [MANIFEST]


def killed_between_the_renames(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    write(out, "old")
    out.rename(tmp_path / f"out.partial-old-{DEAD_PID}")
    (tmp_path / f"out.partial-{DEAD_PID}").mkdir()
    return out


def test_a_run_killed_between_the_two_renames_lost_nothing(tmp_path: Path) -> None:
    out = killed_between_the_renames(tmp_path)
    with pytest.raises(PackageError, match="exists"):  # the old package is back, and was not asked to be replaced
        write(out, "new")
    assert content(out) == "old"
    assert names(tmp_path) == ["out"]


def test_after_such_a_kill_overwriting_works(tmp_path: Path) -> None:
    out = killed_between_the_renames(tmp_path)
    write(out, "new", overwrite=True)
    assert content(out) == "new"
    assert names(tmp_path) == ["out"]


def test_a_run_killed_after_the_renames_leaves_only_rubbish(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "new")
    (tmp_path / f"out.partial-old-{DEAD_PID}").mkdir()
    with pytest.raises(PackageError, match="exists"):
        write(out, "newer")
    assert content(out) == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_failing_second_rename_brings_the_old_package_back(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write(out, "old")
    rename: Callable[[Path, Path], Path] = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == f"out.partial-{os.getpid()}":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises((PackageError, KeyboardInterrupt)):
        write(out, "new", overwrite=True)
    assert content(out) == "old"
    assert names(tmp_path) == ["out"]


def test_a_process_killed_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    # The child writes packages over each other without end and is killed; the next run always finds a whole one.
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from edgepack.package.folder import MANIFEST, package_folder\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    with package_folder(Path(sys.argv[1]), overwrite=True) as folder:\n"
        "        (folder / MANIFEST).write_text('a' * 2000)\n"
        "        (folder / 'weights').write_text('b' * 2000)\n"
        "    n == 3 and print('running', flush=True)\n"
    )
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for delay_ms in (0, 3, 7):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(out)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(delay_ms / 1000)
        child.kill()
        child.wait()
        child.stdout.close()
        with pytest.raises(PackageError, match="exists"):
            write(out, "other")
        assert names(tmp_path) == ["out"]
        assert (content(out), (out / "weights").read_text()) == ("a" * 2000, "b" * 2000)


# -- opening


def edit(package: Package, change: Callable[[dict[str, Any]], None]) -> None:
    path = package.path / MANIFEST
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.write_text(json.dumps(data), "utf-8")


def refused(package: Package, *needles: str, verify: bool = False) -> None:
    with pytest.raises(PackageError) as caught:
        open_package(package.path, verify=verify)
    message = str(caught.value)
    assert "\n" not in message
    for needle in needles:
        assert needle in message


def test_every_file_is_listed_with_its_size_and_hash(package: Package) -> None:
    files = {path.relative_to(package.path).as_posix() for path in package.path.rglob("*") if path.is_file()}
    assert {entry.path for entry in package.manifest.files} == files - {MANIFEST}
    assert [entry.path for entry in package.manifest.files] == sorted(files - {MANIFEST})


@pytest.mark.parametrize("index", range(4))
def test_a_missing_file_is_named(package: Package, index: int) -> None:
    entry = package.manifest.files[index]
    (package.path / entry.path).unlink()
    refused(package, entry.path, "is missing")


def test_a_truncated_file_is_named(package: Package) -> None:
    entry = next(entry for entry in package.manifest.files if entry.path.endswith("_data"))
    os.truncate(package.path / entry.path, entry.size_bytes - 1)
    refused(package, entry.path, f"expected {entry.size_bytes} bytes, got {entry.size_bytes - 1}")


def test_a_changed_file_is_named_when_hashes_are_checked(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for entry in package.manifest.files if entry.path.endswith("_data"))
    with (package.path / entry.path).open("r+b") as file:
        file.seek(entry.size_bytes // 2)
        byte = file.read(1)
        file.seek(entry.size_bytes // 2)
        file.write(bytes([byte[0] ^ 1]))
    refused(package, entry.path, "sha256")  # it is a small one
    monkeypatch.setattr(package_module, "ALWAYS_HASHED_BYTES", entry.size_bytes - 1)
    open_package(package.path)
    refused(package, entry.path, "sha256", verify=True)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "onnx/../../secret", "..\\secret", "", "."])
def test_paths_that_leave_the_package_are_refused(package: Package, path: str) -> None:
    (package.path.parent / "secret").write_text("x")
    edit(package, lambda data: data["files"][0].update(path=path))
    refused(package, "files.0.path")


def test_links_that_leave_the_package_are_refused(package: Package) -> None:
    entry = package.manifest.files[0]
    secret = package.path.parent / "secret"
    secret.write_bytes((package.path / entry.path).read_bytes())
    (package.path / entry.path).unlink()
    (package.path / entry.path).symlink_to(secret)
    refused(package, entry.path, "leads outside the package")


def test_a_graph_that_is_no_file_of_the_package_is_refused(package: Package) -> None:
    edit(package, lambda data: data["graphs"].update(decoder="../decoder.onnx"))
    refused(package, "graph 'decoder'", "../decoder.onnx")


def test_a_role_without_a_graph_is_refused(package: Package) -> None:
    with pytest.raises(PackageError, match=r"no graph 'vision'; it has decoder, embed|it has embed, decoder"):
        package.file("vision")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda data: data.update(schema_version=2), "schema_version"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.pop("plan"), "plan"),
        (lambda data: data["plan"].update(backend="coreml"), "plan.backend"),
        (lambda data: data["plan"].pop("runtime"), "plan.runtime"),
        (lambda data: data["files"][0].update(sha256="xyz"), "files.0.sha256"),
        (lambda data: data["files"][0].update(size_bytes=-1), "files.0.size_bytes"),
    ],
)
def test_a_wrong_field_of_the_manifest_is_named(
    package: Package, change: Callable[[dict[str, Any]], None], field: str
) -> None:
    edit(package, change)
    refused(package, MANIFEST, f": {field}: ")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[]"])
def test_a_manifest_that_is_none_is_refused(package: Package, text: bytes) -> None:
    (package.path / MANIFEST).write_bytes(text)
    refused(package, MANIFEST, "the document")


def test_a_folder_without_manifest_and_no_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing that is known")
    with pytest.raises(PackageError, match=f"{tmp_path} is not a package: {MANIFEST} is missing; write one with"):
        open_package(tmp_path)
    with pytest.raises(PackageError, match=f"{tmp_path / 'none'} is not a package: no such folder; write one with"):
        open_package(tmp_path / "none")


def test_a_package_works_where_it_is_moved_to(package: Package) -> None:
    moved = package.path.rename(package.path.parent / "elsewhere")
    assert open_package(moved, verify=True).manifest == package.manifest
    assert str(package.path.parent) not in (moved / MANIFEST).read_text()
