"""An ARM Python with our dependencies under `.arm/`, run by qemu in user mode.

Nothing is installed and nothing outside that folder changes: Debian packages are unpacked, not configured, and wheels
are put beside them. No root, no chroot, no binfmt.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.arm import debian

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / ".arm"
STAMP = FOLDER / "complete"
# Ends a process that loads it on a core without LSE atomics ("compiled with lse enabled"), so ours must not.
GPU_LIBRARY = FOLDER / "site/ai_edge_litert/libLiteRtWebGpuAccelerator.so"
# The tags that pip would take on a Raspberry Pi OS of 2023 (glibc 2.36).
PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in (34, 31, 28, 27, 26, 17)), "manylinux2014_aarch64")


@dataclass(frozen=True)
class Cpu:
    """A core that qemu plays, and how Linux describes it: onnxruntime and LiteRT choose kernels by both.

    Attributes:
        name: as in QEMU_CPU.
        part: "CPU part" of /proc/cpuinfo.
        variant: "CPU variant".
        features: "Features".
    """

    name: str
    part: str
    variant: str
    features: str

    @property
    def python(self) -> Path:
        """A script that starts the ARM Python on this core."""
        return FOLDER / self.name / "python"

    @property
    def has_dot_product(self) -> bool:
        """Whether it multiplies int8 by the dozen."""
        return "asimddp" in self.features.split()

    @property
    def has_atomics(self) -> bool:
        """Whether it has those of Armv8.1 (LSE)."""
        return "atomics" in self.features.split()

    def cpuinfo(self) -> str:
        """/proc/cpuinfo with two such cores."""
        facts = (
            f"BogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
            f"CPU variant\t: {self.variant}\nCPU part\t: {self.part}\nCPU revision\t: 1\n"
        )
        return "".join(f"processor\t: {i}\n{facts}\n" for i in range(2))


CPUS = (
    Cpu("cortex-a72", "0xd08", "0x0", "fp asimd evtstrm crc32 cpuid"),  # Raspberry Pi 4
    Cpu(  # Raspberry Pi 5
        "cortex-a76",
        "0xd0b",
        "0x4",
        "fp asimd evtstrm crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
)


def requirements() -> list[str]:
    """What `pip install '.[run,run-litert]'` asks for."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    return sorted({*project["dependencies"], *extras["run"], *extras["run-litert"]})


def prepare(pip: Sequence[str]) -> None:
    """Fill `.arm/` unless that was done already; `pip` is the command of the machine's own.

    Raises:
        UnavailableError: something could not be downloaded.
    """
    wanted = _wanted()
    if STAMP.is_file() and STAMP.read_text("utf-8") == wanted:
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    debian.unpack_python(FOLDER)
    python = (FOLDER / "root/usr/bin/python3").resolve()
    _install_wheels(pip, python.name.removeprefix("python"))
    for cpu in CPUS:
        _write_launcher(cpu, debian.find_qemu(FOLDER), python)
    STAMP.write_text(wanted, "utf-8")


def _wanted() -> str:
    """Changes with everything that the folder is made from."""
    digest = hashlib.sha256("\n".join(requirements()).encode())
    sources = (REPOSITORY / "constraints.txt", Path(__file__), Path(debian.__file__))
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _install_wheels(pip: Sequence[str], version: str) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    abis = [word for name in (f"cp{version.replace('.', '')}", "abi3", "none") for word in ("--abi", name)]
    command = [*pip, "install", "-q", "--target", str(FOLDER / "site"), "--only-binary=:all:", *platforms, *abis]
    command += ["--python-version", version, "--implementation", "cp", "-c", str(REPOSITORY / "constraints.txt")]
    debian.download([*command, *requirements()], "wheels for ARM")


def _write_launcher(cpu: Cpu, qemu: Path, python: Path) -> None:
    """Write the script `cpu.python`, and the tree in which its Python looks for system files.

    The script gives its own path to Python as argv[0], so that `sys.executable` is the script: a child process of
    ours (the one that fills the cache, the one that validates) then starts in qemu as well.
    """
    tree, root = cpu.python.parent, FOLDER / "root"
    (tree / "proc").mkdir(parents=True)
    (tree / "proc/cpuinfo").write_text(cpu.cpuinfo(), "utf-8")
    for folder in ("lib", "usr", "etc"):
        (tree / folder).symlink_to(root / folder)
    cpu.python.write_text(
        "#!/bin/sh\n"
        f"export QEMU_CPU={cpu.name} PYTHONHOME='{root / 'usr'}'\n"
        f"exec '{qemu}' -0 \"$0\" -L '{tree}' '{python}' \"$@\"\n",
        "utf-8",
    )
    cpu.python.chmod(0o755)


def run(cpu: Cpu, arguments: Sequence[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the ARM Python with our code and its dependencies importable, and with a cache of its own."""
    paths = (FOLDER / "site", REPOSITORY, REPOSITORY / "converters", REPOSITORY / "runtimes")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(cache),
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        # numpy probes the CPU's floating point at import and finds qemu's rounding of long double odd.
        "PYTHONWARNINGS": "ignore",
        # The host's Python may have left its own byte code of our files, and must not find that of another version.
        "PYTHONDONTWRITEBYTECODE": "1",
        "EDGEPACK_CACHE": str(cache),
    }
    command = [str(cpu.python), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
