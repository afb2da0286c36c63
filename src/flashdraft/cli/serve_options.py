"""The options of ``flashdraft serve``, in the groups of its help; peers' names where the meaning is the same."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def _panel(name: str) -> Any:
    def option(*flags: str, **more: Any) -> Any:
        return typer.Option(*flags, rich_help_panel=name, **more)

    return option


def _foreign(*flags: str) -> Any:
    return typer.Option(*flags, hidden=True)


_model, _engine, _api, _limit, _process = map(_panel, ("Model", "Engine", "API", "Limits", "Process"))
_peer = _panel("As vLLM and SGLang say it")

Revision = Annotated[
    str | None, _model("--revision", help="Branch, tag or commit of a hub model; a drafter's: NAME@REVISION.")
]
ChatTemplate = Annotated[
    Path | None, _model("--chat-template", help="Jinja file in place of the model's own template.")
]
DraftWindowSize = Annotated[
    int | None,
    _model(
        "--draft-window-size",
        "--speculative-draft-window-size",
        help="The drafter sees this many tokens of the context, the target all.  [default: all; embedded: 1024]",
    ),
]
ContextLength = Annotated[
    int | None,
    _engine(
        "--context-length",
        "--max-model-len",
        help="Most tokens of prompt and answer.  [default: the model's]",
    ),
]
MaxRunning = Annotated[
    int, _engine("--max-running-requests", "--max-num-seqs", help="Answers decoded at one time.")
]
MaxBatchedTokens = Annotated[
    int,
    _engine("--max-num-batched-tokens", help="Tokens of one step: blocks first, then prompts in chunks."),
]
MaxTotalTokens = Annotated[
    int | None,
    _engine("--max-total-tokens", help="Tokens that the paged cache holds.  [default: a context, or 16384]"),
]
Host = Annotated[str, _api("--host", help="Address to listen on.")]
Port = Annotated[int, _api("--port", help="Port; 0: a free one.")]
ApiKeys = Annotated[
    list[str] | None,
    _api("--api-key", envvar="FLASHDRAFT_API_KEY", help="A key that clients must send; may be repeated."),
]
ServedNames = Annotated[
    list[str] | None,
    _api("--served-model-name", help="Name in the API; may be repeated.  [default: MODEL]"),
]
MaxQueue = Annotated[int, _limit("--max-queue", help="Answers that may wait; more get 429.")]
MaxBody = Annotated[int, _limit("--max-body-bytes", help="Largest request body.")]
MaxN = Annotated[int, _limit("--max-n", help="Most answers of one request.")]
MaxAnswer = Annotated[
    int | None, _limit("--max-answer-tokens", help="Longest answer.  [default: what the context leaves]")
]
DrainSeconds = Annotated[
    int,
    _process("--drain-seconds", help="After SIGTERM, time for what is under way; the rest gets an error."),
]
LogFormat = Annotated[Literal["text", "json"], _process("--log-format", help="How lines of the log look.")]
LogRequests = Annotated[
    Path | None,
    _process(
        "--log-requests",
        help="Append what was asked and answered to this JSON lines file.  [default: nothing is kept]",
    ),
]
DryRun = Annotated[bool, _process("--dry-run", help="Print the configuration and the memory plan, and stop.")]
VllmConfig = Annotated[
    str | None,
    _peer("--speculative-config", help="vLLM's JSON: method, model, num_speculative_tokens (15: block 16)."),
]
SglangAlgorithm = Annotated[str | None, _peer("--speculative-algorithm", help="SGLang's: DFLASH.")]
SglangDraft = Annotated[str | None, _peer("--speculative-draft-model-path", help="SGLang's --draft.")]
SglangBlock = Annotated[int | None, _peer("--speculative-num-draft-tokens", help="SGLang's --block-size.")]

# Known, and refused with the reason: see serve_run.py.
TensorParallel = Annotated[int | None, _foreign("--tp-size", "--tp", "--tensor-parallel-size")]
MemoryFraction = Annotated[float | None, _foreign("--mem-fraction-static", "--gpu-memory-utilization")]
AttentionBackend = Annotated[
    str | None, _foreign("--attention-backend", "--speculative-draft-attention-backend")
]
MambaStrategy = Annotated[str | None, _foreign("--mamba-scheduler-strategy", "--mamba-radix-cache-strategy")]
TrustRemoteCode = Annotated[bool | None, _foreign("--trust-remote-code")]
ModelPath = Annotated[str | None, _foreign("--model-path")]
