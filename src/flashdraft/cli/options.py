"""Options that several commands share, and the model that they open."""

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from flashdraft.checkpoint.hub import check_exists
from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from flashdraft.admission import BlockSize
    from flashdraft.llm import LLM

Dtype = Literal["float32", "bfloat16"]


def panel(name: str) -> Callable[..., Any]:
    """typer.Option in the group ``name`` of the help."""
    return partial(typer.Option, rich_help_panel=name)


_model, _sampling = panel("Model"), panel("Sampling")

ModelOption = Annotated[
    str, _model("--model", help="Target: embedded, a Hugging Face folder, a GGUF file or a hub name.")
]
DraftOption = Annotated[
    str | None,
    _model(
        "--draft",
        help="Drafter: embedded, a folder, a hub name, mtp (the target's own head), or none.",
        show_default="embedded for the embedded target",
    ),
]
BlockSizeOption = Annotated[
    str | None,
    _model(
        "--block-size",
        help="Tokens of a block, anchor included; 1 is plain decoding; auto chooses for every step.",
        show_default="auto",
        metavar="auto|N",
    ),
]
DraftTreeOption = Annotated[
    int | None,
    _model(
        "--draft-tree",
        help="Verify the likeliest continuations of every block as a tree of this many tokens, anchor included.",
        show_default="none, a chain",
    ),
]
DtypeOption = Annotated[
    Dtype, _model("--dtype", help="Type of weights and activations; float32 is the strict one.")
]
ExactDtypeOption = Annotated[
    Dtype | None,
    _model(
        "--dtype",
        help="Type of weights and activations.",
        show_default="bfloat16 on CUDA and where the C++ layers run, else float32",
    ),
]
QuantizationOption = Annotated[
    Literal["int8", "int4"] | None,
    _model(
        "--quantization",
        help="Weights of the layers in 8 or 4 bits, activations in 8: on CPUs with a C++ compiler, with bfloat16.",
        show_default="none",
    ),
]


def _device(said: str) -> str:
    """``--device``, before anything heavy is imported; whether it is there is seen later. Raises UsageError."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", said):
        raise UsageError(f"--device is {said!r}; expected cpu, cuda or cuda:N, for example cuda:0")
    return said


DeviceOption = Annotated[str, _model("--device", help="cpu, cuda or cuda:N.", callback=_device)]
MaxTokensOption = Annotated[int, _sampling("--max-tokens", help="The longest answer, in tokens.")]
TemperatureOption = Annotated[float, _sampling("--temperature", help="0 takes the likeliest token.")]
TopPOption = Annotated[float, _sampling("--top-p", help="Sample among the likeliest tokens of this total.")]
TopKOption = Annotated[int, _sampling("--top-k", help="Sample among this many tokens; 0: all.")]
SeedOption = Annotated[
    int | None, _sampling("--seed", help="One seed gives one text.", show_default="random")
]
SystemOption = Annotated[
    str | None, typer.Option("--system", help="System prompt.", show_default="the chat template's own")
]
ThinkingOption = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking",
        help="The chat template's enable_thinking: answer as the drafter was trained.",
        show_default="the chat template's own",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document as the last line of stdout.")]


def parse_block_size(said: str | None) -> "BlockSize | None":
    """``--block-size``; None where nothing was said. Raises UsageError."""
    if said is None:
        return None
    if said == "auto":
        return "auto"
    try:
        return int(said)
    except ValueError:
        raise UsageError(f"--block-size is {said!r}; expected auto or a number, for example 8") from None


def check_paths(*names: str | None) -> None:
    """Tell a path that is not there at once, before anything heavy is imported. Raises CheckpointError."""
    for name in names:
        if name not in (None, "embedded", "mtp", "none"):
            check_exists(name)


def open_llm(
    model: str,
    draft: str | None,
    dtype: Dtype | None,
    device: str,
    block_size: "BlockSize | None" = None,
    quantization: str | None = None,
    draft_window_size: int | None = None,
    draft_tree: int | None = None,
    attention_backend: str = "auto",
    keep_codes: bool | None = None,
) -> "LLM":
    """Load target, drafter and tokenizer, with a spinner on stderr. Raises what ``LLM`` raises."""
    check_paths(model, draft)
    with Console(stderr=True).status("loading the model"):
        from flashdraft.llm import LLM

        shared: dict[str, Any] = {"dtype": dtype, "device": device, "quantization": quantization}
        shared |= {"draft_window_size": draft_window_size, "draft_tree": draft_tree}
        shared |= {"attention_backend": attention_backend, "keep_codes": keep_codes}
        if draft is None:
            return LLM(model, block_size=block_size, **shared)
        return LLM(model, None if draft == "none" else draft, block_size, **shared)


def measure_steps(llm: "LLM", num_rows: int = 1) -> None:
    """Measure or record steps of up to ``num_rows`` requests now, so that no answer waits for it."""
    with Console(stderr=True).status("measuring this machine's steps"):
        engine = llm.engine
        engine.runner.record_prompts()
        if llm.block_size == "auto":
            blocks = engine.control.calibrate(num_rows).acceptance.blocks
            engine.overlap.record({1, *blocks}, num_rows, engine.tree_size, engine.control.trees)
        else:
            engine.overlap.record({1, llm.block_size}, num_rows, engine.tree_size)


def tell_room(llm: "LLM", max_tokens: int) -> None:
    """Say on stderr where no answer can have ``max_tokens``, since prompt and answer share the context."""
    context = llm.target.config.max_position_embeddings
    if max_tokens >= context:
        typer.echo(
            f"flashdraft: --max-tokens is {max_tokens}, and the model's context holds {context} tokens, prompt and"
            " answer together: an answer ends there at the latest",
            err=True,
        )


def what_cut(num_tokens: int, max_tokens: int) -> str:
    """The limit that an answer of finish reason "length" has met after ``num_tokens``."""
    return f"--max-tokens {max_tokens}" if num_tokens == max_tokens else "the end of the model's context"


def opening(system: str | None, text: str | None = None) -> list[dict[str, str]]:
    """The first messages of a conversation."""
    said = (("system", system), ("user", text))
    return [{"role": role, "content": content} for role, content in said if content is not None]


def template_values(thinking: bool | None) -> dict[str, bool]:
    """What ``--thinking`` tells the chat template."""
    return {} if thinking is None else {"enable_thinking": thinking}
