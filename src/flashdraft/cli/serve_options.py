"""The options of ``flashdraft serve``, in the groups of its help; peers' names where the meaning is the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flashdraft.backends.registry import AUTO_BACKEND, BACKENDS
from flashdraft.cli.options import (
    BlockSizeOption,
    DeviceOption,
    DraftOption,
    DraftTreeOption,
    ExactDtypeOption,
    QuantizationOption,
    panel,
)
from flashdraft.errors import UsageError

_model, _engine, _api, _limit, _process = map(panel, ("Model", "Engine", "API", "Limits", "Process"))
_peer = panel("As vLLM and SGLang say it")


def _foreign(*flags: str) -> Any:
    return typer.Option(*flags, hidden=True)


def _read_config(context: typer.Context, file: Path | None) -> Path | None:
    """Make the file's values the defaults of the other options."""
    if file is None:
        return None
    import yaml

    try:
        said = yaml.safe_load(file.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {file} cannot be read: {error}") from None
    if not isinstance(said, dict):
        raise UsageError(f"--config {file} holds a {type(said).__name__}; expected option: value, one a line")
    said = {str(name).replace("-", "_"): value for name, value in said.items()}
    known = {parameter.name for parameter in context.command.params} - {"config", "help", "model_option"}
    if unknown := set(said) - known:
        raise UsageError(f"--config {file} has {min(unknown)!r}; expected names of options, like port")
    context.default_map = said
    return file


@dataclass(frozen=True)
class ServeOptions:
    """One command line of ``flashdraft serve``, as it was given."""

    model: Annotated[
        str | None,
        typer.Argument(help="Target, as --model.", show_default="embedded"),
    ] = None
    model_option: Annotated[
        str | None,
        _model(
            "--model",
            help="Target: embedded, a Hugging Face folder, a GGUF file or a hub name.",
            show_default="embedded",
        ),
    ] = None
    draft: DraftOption = None
    block_size: BlockSizeOption = None
    draft_tree: DraftTreeOption = None
    dtype: ExactDtypeOption = None
    quantization: QuantizationOption = None
    device: DeviceOption = "cpu"
    revision: Annotated[
        str | None,
        _model("--revision", help="Branch, tag or commit of a hub model; a drafter's: NAME@REVISION."),
    ] = None
    chat_template: Annotated[
        Path | None, _model("--chat-template", help="Jinja file in place of the model's own template.")
    ] = None
    draft_window_size: Annotated[
        int | None,
        _model(
            "--draft-window-size",
            "--speculative-draft-window-size",
            help="The drafter sees this many tokens of the context, the target all.",
            show_default="all; embedded: 1024",
        ),
    ] = None
    context_length: Annotated[
        int | None,
        _engine(
            "--context-length",
            "--max-model-len",
            help="Most tokens of prompt and answer.",
            show_default="the model's",
        ),
    ] = None
    max_running_requests: Annotated[
        int, _engine("--max-running-requests", "--max-num-seqs", help="Answers decoded at one time.")
    ] = 32
    attention_backend: Annotated[
        str,
        _engine(
            "--attention-backend",
            help=f"How the target's steps run: {AUTO_BACKEND}, or {', '.join(BACKENDS)}.",
        ),
    ] = AUTO_BACKEND
    keep_codes: Annotated[
        bool | None,
        _engine(
            "--keep-codes/--no-keep-codes",
            help="On CUDA, a quantized target's weights stay in their codes.",
            show_default="where floats do not fit",
        ),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        _engine(
            "--max-num-batched-tokens",
            help="Tokens of one step's blocks.",
            show_default="whole blocks of all answers, at least 512",
        ),
    ] = None
    chunked_prefill_size: Annotated[
        int | None,
        _engine(
            "--chunked-prefill-size",
            help="Tokens of prompts in one step.",
            show_default="8192 on a GPU, else --max-num-batched-tokens or 512",
        ),
    ] = None
    max_prefill_slowdown: Annotated[
        float | None,
        _engine(
            "--max-prefill-slowdown",
            help="How many times as long a step may take for prompts, while others wait for their next token.",
            show_default="2.5 on a GPU, else any",
        ),
    ] = None
    max_total_tokens: Annotated[
        int | None,
        _engine(
            "--max-total-tokens",
            help="Tokens that the paged cache holds.",
            show_default="a context, or 16384",
        ),
    ] = None
    max_prefix_states: Annotated[
        int,
        _engine(
            "--max-prefix-states",
            help="Of models with recurrent layers: states kept behind prefixes, beside one of each answer.",
        ),
    ] = 32
    host: Annotated[str, _api("--host", help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _api("--port", help="Port; 0: a free one.")] = 30000
    api_key: Annotated[
        list[str] | None,
        _api("--api-key", envvar="FLASHDRAFT_API_KEY", help="A key that clients must send; may be repeated."),
    ] = None
    allowed_hosts: Annotated[
        list[str] | None,
        _api(
            "--allowed-hosts",
            help="Host name that keyless clients may use; may be repeated; *: any.",
            show_default="this machine's, on a loopback --host; else any",
        ),
    ] = None
    allowed_origins: Annotated[
        list[str] | None,
        _api(
            "--allowed-origins",
            help="Origin of web pages that may ask (CORS), as https://chat.example; may be repeated; *: any.",
            show_default="none but the server's own",
        ),
    ] = None
    served_model_name: Annotated[
        list[str] | None,
        _api("--served-model-name", help="Name in the API; may be repeated.", show_default="the model's"),
    ] = None
    max_queue: Annotated[int, _limit("--max-queue", help="Answers that may wait; more get 429.")] = 128
    max_per_client: Annotated[
        int | None,
        _limit(
            "--max-per-client",
            help="Answers of one client (address, or key where there are several) that wait or run; more get 429.",
            show_default="3/4 of all",
        ),
    ] = None
    max_body_bytes: Annotated[int, _limit("--max-body-bytes", help="Largest request body.")] = 4 << 20
    max_connections: Annotated[
        int, _limit("--max-connections", help="Open connections; beyond, one without a request is closed.")
    ] = 1024
    client_timeout_s: Annotated[
        float,
        _limit("--client-timeout", help="Seconds in which a client has to send its request, and to read."),
    ] = 30.0
    max_n: Annotated[int, _limit("--max-n", help="Most answers of one request.")] = 16
    max_answer_tokens: Annotated[
        int | None,
        _limit("--max-answer-tokens", help="Longest answer.", show_default="what the context leaves"),
    ] = None
    drain_s: Annotated[
        int,
        _process(
            "--drain-seconds", help="After SIGTERM, time for what is under way; the rest gets an error."
        ),
    ] = 60
    log_format: Annotated[
        Literal["text", "json"], _process("--log-format", help="How lines of the log look.")
    ] = "text"
    log_requests: Annotated[
        Path | None,
        _process(
            "--log-requests",
            help="Append what was asked and answered to this JSON lines file.",
            show_default="nothing is kept",
        ),
    ] = None
    config: Annotated[
        Path | None,
        _process("--config", help="YAML file of option: value.", is_eager=True, callback=_read_config),
    ] = None
    dry_run: Annotated[
        bool, _process("--dry-run", help="Print the configuration and the memory plan, and stop.")
    ] = False
    speculative_config: Annotated[
        str | None,
        _peer(
            "--speculative-config", help="vLLM's JSON: method, model, num_speculative_tokens (15: block 16)."
        ),
    ] = None
    speculative_algorithm: Annotated[
        str | None, _peer("--speculative-algorithm", help="SGLang's: DFLASH.")
    ] = None
    speculative_draft_model_path: Annotated[
        str | None, _peer("--speculative-draft-model-path", help="SGLang's --draft.")
    ] = None
    speculative_num_draft_tokens: Annotated[
        int | None, _peer("--speculative-num-draft-tokens", help="SGLang's --block-size.")
    ] = None
    # Known, and refused with the reason: see serve_run.py.
    tp_size: Annotated[int | None, _foreign("--tp-size", "--tp", "--tensor-parallel-size")] = None
    mem_fraction_static: Annotated[
        float | None, _foreign("--mem-fraction-static", "--gpu-memory-utilization")
    ] = None
    draft_attention_backend: Annotated[str | None, _foreign("--speculative-draft-attention-backend")] = None
    mamba_scheduler_strategy: Annotated[
        str | None, _foreign("--mamba-scheduler-strategy", "--mamba-radix-cache-strategy")
    ] = None
    trust_remote_code: Annotated[bool | None, _foreign("--trust-remote-code")] = None
    model_path: Annotated[str | None, _foreign("--model-path")] = None

    @property
    def model_name(self) -> str:
        """The target, by the argument or by --model. Raises UsageError where the two differ."""
        named: Sequence[str] = [name for name in (self.model, self.model_option) if name is not None]
        if len(set(named)) > 1:
            raise UsageError(f"the model is {named[0]} and --model is {named[1]}; name one of them")
        return named[0] if named else "embedded"
