"""`edgepack generate`: run a package on a prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgepack.api import SamplingParams, load
from edgepack.cli.console import err, stdout_to_stderr, told_of_interruption
from edgepack.cli.options import JsonOption, PackageArgument, RuntimeOption, ThreadsOption
from edgepack.cli.prompt import read_prompt
from edgepack.errors import EdgepackError
from edgepack.package.folder import open_package
from edgepack.shown import shown
from edgepack_runtimes.sampling_defaults import GENERATION_CONFIG

_HELP = {
    "temperature": "Divides the logits; 0 (default) takes the most likely token.",
    "top_k": "Draw from the K most likely tokens; 0 (default): from all.",
    "top_p": "Draw from the most likely tokens that reach this probability together; 1 (default): from all.",
    "repetition_penalty": "Makes tokens that were there less likely; 1 (default) does not.",
}


def command(
    package: PackageArgument,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT|-", help="Text to continue; - or a pipe: standard input, in UTF-8."),
    ] = None,
    token_ids: Annotated[
        str | None,
        typer.Option("--token-ids", metavar="2,818,...", help="Token ids to continue, in place of a prompt."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer the prompt through the package's chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, metavar="N")] = 128,
    sample: Annotated[
        bool, typer.Option("--sample", help="Sample as generation_config.json says; the options below go before it.")
    ] = False,
    temperature: Annotated[float | None, typer.Option("--temperature", metavar="T", help=_HELP["temperature"])] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", metavar="K", help=_HELP["top_k"])] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", metavar="P", help=_HELP["top_p"])] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option("--repetition-penalty", metavar="R", help=_HELP["repetition_penalty"])
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="S", help="Makes sampling repeatable.")] = None,
    runtime: RuntimeOption = None,
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
) -> None:
    """Generate text with a package; streams to stdout, statistics go to stderr."""
    if prompt is not None and token_ids is not None:
        raise EdgepackError("--prompt and --token-ids are both given: pass one of them")
    if chat and token_ids is not None:
        raise EdgepackError("--chat answers a --prompt: token ids are continued as they are")
    knobs = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    given: dict[str, Any] = {name: value for name, value in {**knobs, "seed": seed}.items() if value is not None}
    sampling = _of_the_package(package, given) if sample else SamplingParams(**given)
    ids = _parse_ids(token_ids) if token_ids is not None else None
    text = read_prompt(prompt) if ids is None else ""
    pieces: list[Any] = []
    with told_of_interruption(lambda: _cut_short(pieces, json_output)), _loaded(package, runtime, threads) as model:
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling}
        if ids is not None:
            stream: Any = model.generate(ids, **options)
        else:
            stream = model.generate_text(text, chat=chat, **options)
        if sample:  # not before: what is refused is one line
            err.print(_said(sampling, given))
        for piece in stream:
            pieces.append(piece)
            if not json_output:
                typer.echo(piece if ids is None else f"{piece} ", nl=False)
                if getattr(sys.stdout, "reader_left", False):  # as of `| head -c 80`: the rest would be for nobody
                    err.print(f"stopped after {len(pieces)} pieces: nobody reads the answer any more")
                    return
    answer = {"text": "".join(pieces)} if ids is None else {"token_ids": pieces}
    _finish(stream, {**answer, "sampling": sampling.model_dump()}, json_output)


def _of_the_package(package: Path, given: dict[str, Any]) -> SamplingParams:
    """The package's own way to sample, with `given` before it."""
    open_package(package)  # whoever changed a file of it is named before the file is believed
    sampling = SamplingParams.from_package(package, **given)
    if given.get("temperature") == 0:
        raise EdgepackError("--sample with --temperature 0 samples nothing: pass one of them")
    if sampling.temperature == 0:
        raise EdgepackError(
            f"--sample: {package / GENERATION_CONFIG} asks for no sampling (do_sample, or temperature 0): "
            "pass --temperature 1, or leave --sample out"
        )
    return sampling


def _said(sampling: SamplingParams, given: dict[str, Any]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in sampling.model_dump(exclude_none=True).items())
    own = f"options ({', '.join(given)}), " if given else ""
    return f"sampling: {values}; from {own}{GENERATION_CONFIG} and Transformers' defaults"


def _loaded(package: Path, runtime: str | None, threads: int | None) -> Any:
    with stdout_to_stderr():  # what a library has to say would be read as the answer
        return load(package, runtime=runtime, threads=threads)


def _cut_short(pieces: list[Any], json_output: bool) -> str:
    """End the line of an answer that a signal cuts short, and say so."""
    if json_output or not pieces:
        return "no answer was printed"
    typer.echo()
    return "the answer is not complete"


def _finish(stream: Any, answer: dict[str, Any], json_output: bool) -> None:
    """Statistics after the last piece: on stderr, or with the answer in one JSON document."""
    stats = stream.stats
    if json_output:
        typer.echo(json.dumps({**answer, "finish_reason": stream.finish_reason, **stats.model_dump()}))
        return
    typer.echo()
    decode = f", decode {stats.decode_tokens_per_s:.1f} tok/s" if stats.decode_tokens_per_s else ""
    err.print(
        f"{stats.new_tokens} tokens ({stream.finish_reason}); prompt {stats.prompt_tokens} tokens, first token after "
        f"{stats.ttft_ms:.0f} ms, prefill {stats.prefill_tokens_per_s:.1f} tok/s{decode}"
    )


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise EdgepackError(
            f"token ids {shown(text)} are not understood: expected whole numbers such as 2,818,5279"
        ) from None
