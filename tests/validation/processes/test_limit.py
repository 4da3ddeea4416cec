"""The memory limit: a real one where this machine gives it, every other way by a stand-in. Nothing is left behind."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack.validation.processes import limit as limits
from edgepack.validation.processes.limit import MemoryLimit, memory_limit, own_group_v2, systemd_obstacle
from edgepack.validation.processes.page_cache import drop_page_cache
from tests.support.scripted import run_script

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone limits memory this way")
LIMIT = 64_000_000
V1 = Path("/sys/fs/cgroup/memory")


def groups() -> list[Path]:
    """The control groups of this process's limits."""
    return sorted(Path("/sys/fs/cgroup").glob(f"**/edgepack.{os.getpid()}.*"))


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert groups() == []


@pytest.fixture(scope="module")
def real() -> str:
    """The way in which this machine limits memory."""
    with memory_limit(LIMIT) as limit:
        if not limit.facts.enforced:
            pytest.skip(f"this machine limits no memory for us: {limit.facts.why}")
        return limit.facts.method


def test_memory_beyond_the_limit_ends_the_worker(real: str) -> None:
    with memory_limit(LIMIT) as limit:
        run = run_script("held = [b'x' * 1_000_000 for _ in range(200)]; send(end='prefill 4')", limit=limit)
        assert limit.facts.method == real
    assert run.failure == "killed at 64,000,000 bytes (64.0 MB) in phase prefill 4"
    assert run.at_limit
    assert run.figures.keys() == {"load"}


def test_within_the_limit_nothing_happens(real: str) -> None:
    with memory_limit(LIMIT) as limit:
        run = run_script("held = b'x' * 20_000_000; send(end='prefill 4'); wait()", limit=limit)
        charged = [phase.charged_bytes or 0 for phase in run.memory.phases()]
    assert (run.failure, run.at_limit) == (None, False)
    assert 20_000_000 < charged[-1] <= LIMIT


def test_a_mapped_file_larger_than_the_limit_is_read_all_the_same(real: str, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * (2 * LIMIT // 256))
    os.sync()
    drop_page_cache([file])
    ending = (
        f"import mmap; file = open({str(file)!r}, 'rb'); view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); "
        "send(end='prefill 4', total=sum(view[::4096])); wait()"
    )
    with memory_limit(LIMIT) as limit:
        run = run_script(ending, limit=limit)
        charged = max(phase.charged_bytes or 0 for phase in run.memory.phases())
    assert (run.failure, run.at_limit) == (None, False)
    assert run.figures["prefill 4"] == {"total": 0}
    assert charged <= LIMIT


def test_pages_that_others_brought_in_count_too(real: str, tmp_path: Path) -> None:
    file = tmp_path / "library"
    file.write_bytes(bytes(range(256)) * (LIMIT // 512))  # half the limit
    assert file.read_bytes()  # in the page cache, at our cost
    ending = (
        f"import mmap; file = open({str(file)!r}, 'rb'); view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); "
        "send(end='prefill 4', total=sum(view[::4096])); wait(); send(begin='decode'); "
        "held = [b'x' * 1_000_000 for _ in range({})]; send(end='decode'); wait()"
    )
    with memory_limit(LIMIT) as limit:
        few = run_script(ending.format(8), limit=limit)
    with memory_limit(LIMIT) as limit:
        many = run_script(ending.format(40), limit=limit)  # alone it would fit
    assert few.failure is None
    assert few.uncharged_bytes is not None and few.uncharged_bytes > LIMIT // 2
    assert many.failure == "killed at 64,000,000 bytes (64.0 MB) in phase decode"


def test_a_limit_that_the_kernel_does_not_move_stays(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with memory_limit(LIMIT) as limit:
        assert limit.group is not None
        (limit.group / "memory.stat").write_text("anon 5\nfile_mapped 1000\n")
        assert limit.count_uncharged(900) == 0  # what it maps is its own
        assert limit.count_uncharged(5000) == 4000
        assert (limit.group / "memory.max").read_text() == str(LIMIT - 4000)
        assert limit.count_uncharged(2 * LIMIT) == 2 * LIMIT - 1000
        assert (limit.group / "memory.max").read_text() == "0"

        def busy(self: Path, *_: object, **__: object) -> int:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self))

        monkeypatch.setattr(Path, "write_text", busy)
        assert limit.count_uncharged(5000) is None


def test_children_are_inside_too(real: str) -> None:
    child = "held = [b'x' * 1_000_000 for _ in range(200)]"
    with memory_limit(LIMIT) as limit:
        run = run_script(f"sys.exit(subprocess.call([sys.executable, '-S', '-c', {child!r}]) != 0)", limit=limit)
    assert run.failure == "killed at 64,000,000 bytes (64.0 MB) in phase prefill 4"


def test_the_group_goes_also_when_the_body_fails(real: str) -> None:
    def fail() -> None:
        with memory_limit(LIMIT) as limit:
            if real != "systemd-run":
                assert groups() == [limit.group]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


@pytest.mark.skipif(not os.access(V1, os.W_OK), reason="no memory cgroup of version 1 that we may write in")
def test_version_1_has_no_swap_and_the_limit_it_was_given() -> None:
    with memory_limit(LIMIT) as limit:
        assert (limit.facts.method, limit.facts.enforced, limit.facts.why) == ("cgroup v1", True, "")
        assert limit.group is not None and limit.group.parent == V1
        kept = int((limit.group / "memory.limit_in_bytes").read_text())
        assert 0 <= LIMIT - kept < mmap.PAGESIZE
        swappiness = limit.group / "memory.swappiness"
        assert not swappiness.exists() or swappiness.read_text().strip() == "0"
        assert limit.kills() == 0


def test_no_limit_and_a_limit_that_nobody_wants_enforced() -> None:
    with memory_limit(None) as none:
        assert (none.facts.method, none.facts.enforced, none.facts.limit_bytes) == ("none", False, None)
        assert none.command(["x"]) == ["x"]
    with memory_limit(LIMIT, enforce=False) as watched:
        facts = watched.facts
        assert (facts.method, facts.enforced, facts.limit_bytes) == ("sampled", False, LIMIT)
        assert facts.why == "asked for, by --no-limit"
        assert (watched.command(["x"]), watched.charged_bytes(), watched.kills()) == (["x"], None, 0)


# A unified hierarchy in a folder. mkdir does not fill a new group here, so the files that are there first are few.


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root, and below it user.slice/session.scope, where this process lives."""
    root = tmp_path / "cgroup"
    own = root / "user.slice" / "session.scope"
    own.mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    for group, controls in ((root, "cpu memory"), (own.parent, "cpu memory pids"), (own, "")):
        (group / "cgroup.subtree_control").write_text(f"{controls}\n")
        (group / "cgroup.procs").write_text("")
    monkeypatch.setattr(limits, "CGROUP_ROOT", root)
    monkeypatch.setattr(limits, "own_group_v2", lambda pid: own)
    monkeypatch.setattr(limits, "systemd_obstacle", lambda: "not installed")
    monkeypatch.setattr(limits, "swap_bytes", lambda: 0)
    monkeypatch.setattr(limits, "REMOVE_TRIES", 1)
    monkeypatch.setattr(limits, "REMOVE_WAIT_S", 0.0)
    return root


def test_version_2_in_the_nearest_group_that_hands_memory_down(tree: Path) -> None:
    with memory_limit(LIMIT) as limit:
        assert (limit.facts.method, limit.facts.enforced) == ("cgroup v2", True)
        group = limit.group
        assert group is not None and group.parent == tree / "user.slice"
        assert (group / "memory.max").read_text() == str(LIMIT)
        (group / "memory.current").write_text("4096\n")
        (group / "memory.events").write_text("low 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 5\n")
        assert (limit.charged_bytes(), limit.kills()) == (4096, 1)
        command = limit.command(["worker", "a b"])
        assert command[:2] == ["/bin/sh", "-c"]
        assert command[-3:] == [str(group / "cgroup.procs"), "worker", "a b"]


def test_version_2_puts_the_worker_in_and_cleans_up(tree: Path) -> None:
    with memory_limit(LIMIT) as limit:
        group = limit.group
        assert group is not None
        run = run_script(
            f"send(end='prefill 4', procs=open({str(group / 'cgroup.procs')!r}).read(), pid=os.getpid())", limit=limit
        )
        for file in group.iterdir():
            file.unlink()  # the kernel's files go with their folder
    figures = run.figures["prefill 4"]
    assert figures["procs"].strip() == str(figures["pid"])
    assert not group.exists()


def test_version_2_takes_swap_away_where_it_is_accounted(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def filled(self: Path, *arguments: object, **named: object) -> None:
        make(self, *arguments, **named)  # type: ignore[arg-type]
        for name in ("memory.max", "memory.swap.max", "memory.oom.group"):
            (self / name).write_text("max\n")

    monkeypatch.setattr(Path, "mkdir", filled)
    with memory_limit(LIMIT) as limit:
        assert limit.group is not None
        read = {file.name: file.read_text() for file in limit.group.iterdir()}
    del read["cgroup.procs"]
    assert read == {"memory.max": str(LIMIT), "memory.swap.max": "0", "memory.oom.group": "1"}


def test_swap_that_cannot_be_limited_is_an_obstacle(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "swap_bytes", lambda: 4096)
    with memory_limit(LIMIT) as limit:
        assert not limit.facts.enforced
        assert "cgroup v2: the machine has swap, which cannot be limited" in limit.facts.why


def test_swap_is_read_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tmp_path / "meminfo"
    facts.write_text("MemTotal:       24 kB\nSwapCached:  9 kB\nSwapTotal:       8 kB\n")
    monkeypatch.setattr(limits, "MEMORY_FACTS", facts)
    assert limits.swap_bytes() == 8192


def test_a_group_that_nobody_may_enter_is_no_limit(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def closed(self: Path, *arguments: object, **named: object) -> None:
        make(self, *arguments, **named)  # type: ignore[arg-type]
        make(self / "cgroup.procs")  # nothing can be written there

    monkeypatch.setattr(Path, "mkdir", closed)
    with memory_limit(LIMIT) as limit:
        assert not limit.facts.enforced
        assert "cgroup v2: no process may enter: " in limit.facts.why


def test_a_limit_below_a_shell_is_called_that(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = MemoryLimit.command
    monkeypatch.setattr(MemoryLimit, "command", lambda self, command: killed(self, ["/bin/sh", "-c", "kill -9 $$"]))
    with memory_limit(LIMIT) as limit:
        assert "cgroup v2: even a shell needs more than the limit" in limit.facts.why


def test_groups_of_processes_that_are_gone_are_removed(tree: Path) -> None:
    stale, ours, other = (
        tree / "user.slice" / name for name in (f"edgepack.{2**22 + 1}.5", f"edgepack.{os.getpid()}.5", "edgepack.x")
    )
    for group in (stale, ours, other):
        group.mkdir()
    with memory_limit(LIMIT):
        assert (stale.exists(), ours.exists(), other.exists()) == (False, True, True)


def test_a_limit_that_vanished_was_none(tree: Path) -> None:
    with memory_limit(LIMIT) as limit:
        assert limit.group is not None
        assert limit.kept() == limit.facts
        for written in ("max", str(LIMIT + 4096)):
            (limit.group / "memory.max").write_text(written)
            assert not limit.kept().enforced
            assert limit.kept().why == "the limit of cgroup v2 was gone after a run"
        (limit.group / "memory.max").unlink()
        assert not limit.kept().enforced


def test_version_2_tells_whose_limit_was_reached(tree: Path) -> None:
    with memory_limit(LIMIT) as limit:
        assert limit.group is not None
        (limit.group / "memory.events").write_text("max 7\noom 0\noom_kill 1\n")  # killed from above
        assert (limit.kills(), limit.reached()) == (1, False)
        (limit.group / "memory.events").write_text("max 7\noom 1\noom_kill 1\n")
        assert limit.reached()


def test_obstacles_are_named_in_order(tree: Path) -> None:
    for group in (tree, tree / "user.slice"):
        (group / "cgroup.subtree_control").write_text("cpu pids\n")
    with memory_limit(LIMIT) as limit:
        facts = limit.facts
    assert (facts.method, facts.enforced, facts.limit_bytes) == ("sampled", False, LIMIT)
    assert facts.why == (
        "cgroup v1: no memory controller; cgroup v2: no group above this process lets us limit memory; "
        "systemd-run: not installed"
    )


def test_a_group_that_cannot_be_limited_is_removed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def refuse(self: Path, *arguments: object, **named: object) -> int:
        if self.name == "memory.max":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return write(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", refuse)
    with memory_limit(LIMIT) as limit:
        assert not limit.facts.enforced
        assert "cgroup v2: Permission denied" in limit.facts.why
    assert not list(tree.rglob("edgepack.*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_without_rights_memory_is_only_watched(tree: Path) -> None:
    for group in (tree, tree / "user.slice"):
        (group / "cgroup.procs").chmod(0o444)
    with memory_limit(LIMIT) as limit:
        assert not limit.facts.enforced


def test_without_rights_the_next_group_above_is_asked(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shut = tree / "user.slice" / "cgroup.procs"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != shut and access(path, mode))
    with memory_limit(LIMIT) as limit:
        assert limit.group is not None and limit.group.parent == tree


def test_where_there_is_no_hierarchy_a_process_has_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CGROUP_ROOT", tmp_path)
    assert own_group_v2(os.getpid()) is None
    (tmp_path / "cgroup.controllers").write_text("memory")
    assert own_group_v2(2**22 + 1) is None  # no such process


# A stand-in for systemd-run: it insists on its arguments, answers the probe, and becomes the command.
SYSTEMD = """#!/bin/sh
for expected in --user --scope --quiet --collect -p MemoryMax={limit} -p MemorySwapMax=0 --; do
    if [ "$1" != "$expected" ] && [ "$1" != "MemoryMax=1073741824" ]; then echo "odd argument $1" >&2; exit 9; fi
    case "$1" in MemoryMax=*) max="${{1#MemoryMax=}}";; esac
    shift
done
case "$*" in */memory.max) {probe}; exit;; esac
IN_SCOPE=yes exec "$@"
"""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without cgroups of its own, whose `systemd-run` works; returns that program."""
    program = tmp_path / "bin" / "systemd-run"
    program.parent.mkdir()
    program.write_text(SYSTEMD.format(limit=LIMIT, probe='echo "$max"'))
    program.chmod(0o755)
    (tmp_path / "none").mkdir()
    monkeypatch.setattr(limits, "CGROUP_ROOT", tmp_path / "none")
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def test_a_scope_of_systemd(systemd: Path) -> None:
    with memory_limit(LIMIT) as limit:
        facts = limit.facts
        assert (facts.method, facts.enforced, facts.limit_bytes) == ("systemd-run", True, LIMIT)
        run = run_script("sys.exit(os.environ.get('IN_SCOPE') != 'yes')", limit=limit)
    assert run.failure is None
    assert run.memory.phases()[-1].charged_bytes is None  # nobody tells the group here


@pytest.mark.parametrize(
    ("probe", "why"),
    [
        ("echo Failed to connect to bus >&2; exit 1", "systemd-run: Failed to connect to bus"),
        ("exit 4", "systemd-run: exit code 4"),
        ("echo max", "systemd-run: the user's session may not limit memory"),
    ],
)
def test_a_systemd_that_does_not_help_is_named(systemd: Path, probe: str, why: str) -> None:
    systemd.write_text(SYSTEMD.format(limit=LIMIT, probe=probe))
    with memory_limit(LIMIT) as limit:
        assert not limit.facts.enforced
        assert limit.facts.why == f"cgroup v1: no memory controller; cgroup v2: no unified hierarchy; {why}"


def test_a_machine_without_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert systemd_obstacle() == "not installed"


def test_the_group_of_a_scope_is_found_after_the_start(systemd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = systemd.parent / "here", systemd.parent / "there"
    there.mkdir()
    (there / "memory.current").write_text("77\n")
    placed = {os.getpid(): here, 1: here}
    with memory_limit(LIMIT) as limit:
        monkeypatch.setattr(limits, "own_group_v2", lambda pid: placed.get(pid))
        assert limit.followed(1).group is None  # not moved yet: our own account is another
        placed[1] = there
        assert limit.followed(1).charged_bytes() == 77
