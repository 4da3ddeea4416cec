"""What was seen of processes and of the machine: parts of a `result.Report` that nobody has judged yet."""

from __future__ import annotations

from typing import Literal

from edgepack.values import Frozen

LimitMethod = Literal["cgroup v1", "cgroup v2", "systemd-run", "sampled", "none"]


class LimitFacts(Frozen):
    """How the memory limit was kept.

    Attributes:
        enforced: the kernel refused memory beyond the limit; else the memory was only watched.
        why: what stood in the way of a real limit; empty where it was enforced or none was asked for.
        uncharged_bytes: pages that the last worker mapped and that were charged to other processes. The kernel's limit
            was lowered by them, so that they count; None where that could not be done.
    """

    method: LimitMethod
    enforced: bool
    limit_bytes: int | None
    why: str = ""
    uncharged_bytes: int | None = None


class PhaseMemory(Frozen):
    """Memory of one process in one phase of its run.

    Attributes:
        phase: ``load``, ``warm-up``, ``prefill 128``, ``decode`` and so on.
        start_ms: from the start of the process.
        peak_rss_bytes: the most that was resident, between samples too where the kernel tells; the largest of all
            phases is that of the process.
        rss_bytes: the largest sample of the phase; its parts are from the same sample.
        anonymous_bytes: heap and stacks: when they do not fit, the process is killed.
        file_bytes: pages of mapped files, which the system can drop and read again.
        most_anonymous_bytes: of any sample of the phase.
        pss_bytes: proportional set size at the end of the phase: shared pages divided by their users.
        charged_bytes: the largest reading of the limit's own account, page cache and children included.
        major_faults: page faults that had to read the disk.
    """

    phase: str
    start_ms: float
    end_ms: float
    peak_rss_bytes: int
    rss_bytes: int
    anonymous_bytes: int | None
    file_bytes: int | None
    shared_bytes: int | None
    most_anonymous_bytes: int | None
    pss_bytes: int | None
    charged_bytes: int | None
    major_faults: int | None


class Moment(Frozen):
    """One point of a memory timeline."""

    time_ms: float
    rss_bytes: int
    anonymous_bytes: int | None
    file_bytes: int | None
    charged_bytes: int | None


class ProcessRecord(Frozen):
    """One worker process.

    Attributes:
        purpose: ``first load``, ``cold load`` or ``run 1``, ``run 2``, ...
        failure: why it did not come to its end; None when it did.
        timeline: thinned out, but with every peak.
    """

    purpose: str
    failure: str | None
    peak_rss_bytes: int | None
    phases: tuple[PhaseMemory, ...]
    timeline: tuple[Moment, ...]


class Machine(Frozen):
    """Hardware and software of a measurement.

    Attributes:
        cpu: model name as the system gives it, the board's name on ARM boards that tell no CPU name.
        cores: logical cores that this process may use.
        ram_bytes: memory of the machine.
        versions: software by name.
    """

    cpu: str
    architecture: str
    system: str
    cores: int
    ram_bytes: int
    versions: dict[str, str]


class Load(Frozen):
    """What a machine did beside our own work, while that lasted.

    Attributes:
        others_share: CPU time that other processes took, of all that its cores have.
        steal_share: CPU time that the hypervisor gave to other guests (man page proc_stat), of the same.
    """

    others_share: float
    steal_share: float
