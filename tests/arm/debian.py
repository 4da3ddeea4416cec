"""Debian packages for ARM out of the machine's own apt sources, with a private state: the machine stays as it is."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

# Python with everything that its wheels link to; apt adds what these need.
PACKAGES = ("python3", "libstdc++6")
QEMU = ("qemu-aarch64-static", "qemu-aarch64")
# The second has the program itself where Debian made a link of the first.
QEMU_PACKAGES = ("qemu-user-static", "qemu-user")
# What a machine runs after its own updates and downloads (clearing its cache, for instance) is not for ours.
HOOKS = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg::Post-Invoke")
TIMEOUT_S = 300


class UnavailableError(Exception):
    """Something that the tests need cannot be had here: no fault of ours."""


def download(command: Sequence[str], what: str, folder: Path | None = None) -> None:
    """Run `command`, which downloads.

    Raises:
        UnavailableError: it is not there, or fails.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except OSError as error:
        raise UnavailableError(f"{what}: {command[0]} cannot be run: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{what}: not done after {TIMEOUT_S} s") from error
    if done.returncode != 0:
        reason = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-5:])
        raise UnavailableError(f"{what}: {command[0]} ended with code {done.returncode}:\n{reason}")


def apt(folder: Path, *architecture: str) -> list[str]:
    """The command `apt-get` with its state in `folder` and nothing installed, so that packages come complete."""
    state, cache, status = folder / "state", folder / "cache", folder / "status"
    for part in (state / "lists/partial", cache / "archives/partial"):
        part.mkdir(parents=True, exist_ok=True)
    status.touch()
    config = folder / "apt.conf"
    lines = [f"#clear {hook};" for hook in HOOKS]
    lines += [f'Dir::State "{state}";', f'Dir::State::status "{status}";', f'Dir::Cache "{cache}";']
    lines += ['APT::Sandbox::User "";', 'Acquire::Retries "2";']
    lines += [
        f'APT::Architecture "{name}"; #clear APT::Architectures; APT::Architectures {{ "{name}"; }};'
        for name in architecture
    ]
    config.write_text("\n".join(lines) + "\n", "utf-8")
    return ["apt-get", "-q", "-y", "-c", str(config)]


def unpack_python(folder: Path) -> None:
    """Unpack Python for ARM and its libraries into `folder`/root.

    Raises:
        UnavailableError: they cannot be downloaded.
    """
    work, root = folder / "debian-arm64", folder / "root"
    command = apt(work, "arm64")
    download([*command, "update"], "package lists of Debian for arm64")
    install = [*command, "install", "--download-only", "--no-install-recommends", *PACKAGES]
    download(install, "Debian's Python for arm64")
    for package in sorted((work / "cache/archives").glob("*.deb")):
        _unpack(package, root)
    if not (root / "lib").exists():  # since Debian 13 packages have usr/lib only
        (root / "lib").symlink_to("usr/lib")
    shutil.rmtree(work)


def _unpack(package: Path, root: Path) -> None:
    download(["dpkg-deb", "-x", str(package), str(root)], f"unpacking {package.name}")


def find_qemu(folder: Path) -> Path:
    """The program that plays an ARM core: the machine's, else Debian's, unpacked into `folder`/qemu.

    Raises:
        UnavailableError: neither can be had.
    """
    root = folder / "qemu"
    for name in QEMU:
        if found := shutil.which(name):
            return Path(found)
    if not root.exists():
        _unpack_qemu(folder / "debian-host", root)
    for name in QEMU:
        if (program := root / "usr/bin" / name).is_file():
            return program
    raise UnavailableError(f"qemu: none of {', '.join(QEMU_PACKAGES)} has {' or '.join(QEMU)}")


def _unpack_qemu(work: Path, root: Path) -> None:
    command = apt(work)
    download([*command, "update"], "package lists of Debian for this machine")
    for name in QEMU_PACKAGES:
        download([*command, "download", name], f"Debian's {name}", work)
        for package in work.glob(f"{name}_*.deb"):
            _unpack(package, root)
        if any((root / "usr/bin" / program).is_file() for program in QEMU):
            break
    for program in (root / "usr/bin").iterdir():  # one for each of 30 architectures, 300 MB
        if program.name not in QEMU:
            program.unlink()
    shutil.rmtree(work)
