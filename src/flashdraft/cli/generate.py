"""``flashdraft generate``: one prompt, one answer."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flashdraft.cli.answer_stream import AnswerStream, Piece
from flashdraft.cli.options import (
    BlockSizeOption,
    DeviceOption,
    DraftOption,
    DraftTreeOption,
    ExactDtypeOption,
    JsonOption,
    MaxTokensOption,
    ModelOption,
    QuantizationOption,
    SeedOption,
    SystemOption,
    TemperatureOption,
    ThinkingOption,
    TopKOption,
    TopPOption,
    measure_steps,
    open_llm,
    opening,
    parse_block_size,
    tell_room,
    template_values,
    what_cut,
)
from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from flashdraft.llm import CompletionOutput, RequestOutput


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; left out, stdin is read.")] = None,
    model: ModelOption = "embedded",
    draft: DraftOption = None,
    block_size: BlockSizeOption = None,
    draft_tree: DraftTreeOption = None,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    seed: SeedOption = None,
    dtype: ExactDtypeOption = None,
    quantization: QuantizationOption = None,
    device: DeviceOption = "cpu",
    system: SystemOption = None,
    thinking: ThinkingOption = None,
    no_chat: Annotated[
        bool, typer.Option("--no-chat", help="Continue the raw text, without the chat template.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Tell on stderr why the blocks were as long as they were.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Answer one prompt; the text streams to stdout.

    \b
    Examples:
      flashdraft generate "Why is the sky blue?"
      flashdraft generate --no-chat --max-tokens 40 "Once upon a time"
      flashdraft generate --system "You are a pirate." "Why is the sky blue?"
      cat question.txt | flashdraft generate --json
    """
    text = _prompt(prompt)
    check_chat_options(no_chat, system, thinking)
    from flashdraft.sampling_params import SamplingParams

    params = SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    size = parse_block_size(block_size)
    llm = open_llm(model, draft, dtype, device, size, quantization=quantization, draft_tree=draft_tree)
    measure_steps(llm)
    tell_room(llm, max_tokens)
    asked = text if no_chat else llm.chat_token_ids(opening(system, text), **template_values(thinking))
    stream = AnswerStream(llm.tokenizer, _show_nothing if as_json else _write)
    output = llm.generate(asked, params, stream.on_round)[0]
    stream.finish()
    if explain:
        typer.echo(f"\n{llm.explain(output.metrics)}", err=True)
    if as_json:
        settings: dict[str, Any] = {"model": model, "draft": draft, "dtype": llm.dtype}
        settings |= {"quantization": quantization}
        settings |= {"block_size": llm.block_size, "draft_tree": llm.draft_tree}
        print(json.dumps(_document(output, stream, settings, device), ensure_ascii=False))
        return
    print()
    _tell_cut(output.outputs[0], max_tokens)


def _tell_cut(answer: "CompletionOutput", max_tokens: int) -> None:
    """Say on stderr that a limit has cut the answer, and which."""
    num_tokens = len(answer.token_ids)
    if answer.finish_reason == "length":
        typer.echo(
            f"flashdraft: cut after {num_tokens} tokens, by {what_cut(num_tokens, max_tokens)}", err=True
        )


def check_chat_options(no_chat: bool, system: str | None, thinking: bool | None) -> None:
    """Raise UsageError for options of the chat template where there is to be none."""
    for name, value in (("--system", system), ("--thinking", thinking)):
        if no_chat and value is not None:
            raise UsageError(
                f"{name} is for the chat template, and --no-chat leaves it out: drop one of them"
            )


def _prompt(argument: str | None) -> str:
    if argument is None and sys.stdin.isatty():
        raise UsageError('there is no prompt; give one (flashdraft generate "...") or pipe one in')
    text = sys.stdin.read().rstrip("\n") if argument is None else argument
    if not text.strip():
        raise UsageError("the prompt is empty; expected some text")
    return text


def _write(pieces: list[Piece]) -> None:
    sys.stdout.write("".join(piece.text for piece in pieces))
    sys.stdout.flush()


def _show_nothing(pieces: list[Piece]) -> None:
    """The whole answer is printed at the end."""


def _document(
    output: "RequestOutput", stream: AnswerStream, settings: dict[str, Any], device: str
) -> dict[str, Any]:
    from flashdraft.provenance import collect_provenance

    answer, metrics = output.outputs[0], output.metrics
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_token_ids": output.prompt_token_ids,
        "metrics": {
            **asdict(metrics),
            "acceptance_length": metrics.acceptance_length,
            "accepted_by_position": metrics.accepted_by_position,
            "total_s": stream.total_s,
            "output_tokens_per_s": stream.tokens_per_s,
        },
        "settings": settings,
        "provenance": collect_provenance(device),
    }
