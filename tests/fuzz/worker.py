"""A process that runs many command lines, one after the other, as `edgepack` would: ``python -m tests.fuzz.worker``.

One line of JSON in for each, ``{"arguments": [...], "folder": "..."}``, one out. What native libraries write counts:
descriptors 1 and 2 are files while a command runs. A crash ends this process, and whoever started it knows the case.
"""

from __future__ import annotations

import gc
import io
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Far more than a small model needs. What would fill the machine is a MemoryError here, or a disk that refuses.
MOST_ADDRESS_BYTES = 8 << 30
MOST_FILE_BYTES = 1 << 27


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESS_BYTES, MOST_ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.fsync = lambda descriptor: None
    answers = os.fdopen(os.dup(1), "w")
    import edgepack.api  # noqa: F401 - not in the time of the first case

    for line in sys.stdin:
        order = json.loads(line)
        answers.write(json.dumps(run(order["arguments"], Path(order["folder"]))) + "\n")
        answers.flush()


def run(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run ``edgepack ARGUMENTS`` in `folder`; its exit code and what it wrote."""
    begin, here = time.perf_counter(), os.getcwd()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        kept = [os.dup(number) for number in (1, 2)]
        streams = (sys.stdout, sys.stderr, sys.argv)
        for number, file in ((1, output), (2, errors)):
            os.dup2(file.fileno(), number)
        try:
            os.chdir(folder)
            code = _call(arguments)
        finally:
            os.chdir(here)
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            sys.stdout, sys.stderr, sys.argv = streams
        texts = [_content(file) for file in (output, errors)]
    gc.collect()
    return {"code": code, "output": texts[0], "errors": texts[1], "seconds": time.perf_counter() - begin}


def _call(arguments: list[str]) -> int:
    """The command's own entry point, with standard streams as at the start of a process."""
    from edgepack.cli.main import main as edgepack

    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    sys.argv = ["edgepack", *arguments]
    try:
        edgepack()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # noqa: BLE001 - nothing may come through but SystemExit; the judge is told
        import traceback

        traceback.print_exception(error)
        return 71
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    return 0


def _content(file: Any) -> str:
    file.seek(0)
    text: str = file.read(1 << 22).decode("latin-1")
    return text


if __name__ == "__main__":
    main()
