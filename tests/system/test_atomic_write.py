"""Files that are written whole: links and permissions stay, and what is no file is written where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgepack.atomic_write import write_whole


def test_permissions_stay_those_of_the_file_before(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.touch()
    file.chmod(0o600)
    write_whole(file, "new")
    assert file.read_text() == "new" and file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    # As `--save /dev/stdout` and `--save >(command)` are: the link leads to a name that cannot be opened again.
    code = (
        "from pathlib import Path; from edgepack.atomic_write import write_whole as w; w(Path('/dev/stdout'), 'told')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "told"), done.stderr


def test_a_folder_is_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path, "x")
