"""The choice of `tokenizer.choose` in a process of its own, which takes half a gigabyte of memory with it when it ends.

Run as ``python tokenizer_process.py``. It reads a JSON object with the sizes of tokenizer.json
and tokenizer.model (null for none) from the first line of stdin, and both behind that. It writes a JSON object with
``kind`` and ``reason`` in one line, and a SentencePiece model behind that where one was chosen; or ``error`` alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from edgepack.errors import CheckpointError
from edgepack_converters.litert.container import Kind
from edgepack_converters.litert.tokenizer import Choice, choose

# A small one is done sooner than a process is started.
_LARGE_BYTES = 4_000_000


def choose_apart(tokenizer: bytes, model: bytes | None = None) -> Choice:
    """As `choose`; a large tokenizer leaves no memory behind.

    Raises:
        CheckpointError: tokenizer.json is no tokenizer, or the process failed.
    """
    if len(tokenizer) + len(model or b"") < _LARGE_BYTES:
        return choose(tokenizer, model)
    sizes = {"tokenizer": len(tokenizer), "model": None if model is None else len(model)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        # By its path, and without that path's folder among those that are searched: its names are not modules.
        [sys.executable, "-P", __file__],
        input=json.dumps(sizes).encode() + b"\n" + tokenizer + (model or b""),
        env=environment,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise CheckpointError(
            f"tokenizer.json: expected a SentencePiece model or none, got a process that failed: {lines[-1]}; "
            "is there a gigabyte of free memory?"
        )
    line, _, content = done.stdout.partition(b"\n")
    answer = json.loads(line)
    if "error" in answer:
        raise CheckpointError(answer["error"])
    return Choice(answer["kind"], content or tokenizer, answer["reason"])


def main() -> None:
    """Answer what is on stdin."""
    sizes = json.loads(sys.stdin.buffer.readline())
    tokenizer = sys.stdin.buffer.read(sizes["tokenizer"])
    model = None if sizes["model"] is None else sys.stdin.buffer.read()
    try:
        choice = choose(tokenizer, model)
    except CheckpointError as error:
        sys.stdout.buffer.write(json.dumps({"error": str(error)}).encode())
        return
    sys.stdout.buffer.write(json.dumps({"kind": choice.kind, "reason": choice.reason}).encode() + b"\n")
    if choice.kind == Kind.SP_Tokenizer:
        sys.stdout.buffer.write(choice.content)


if __name__ == "__main__":
    main()
