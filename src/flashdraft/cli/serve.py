"""``flashdraft serve``: the OpenAI-compatible server and its playground."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flashdraft.cli.options import (
    BlockSizeOption,
    DeviceOption,
    DraftOption,
    DtypeOption,
    QuantizationOption,
    open_llm,
    parse_block_size,
)
from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from flashdraft.server.config import ServerConfig
    from flashdraft.server.peer_flags import Speculation


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
    known = {parameter.name for parameter in context.command.params} - {"config", "help"}
    if unknown := set(said) - known:
        raise UsageError(f"--config {file} has {min(unknown)!r}; expected names of options, like port")
    context.default_map = said
    return file


def _foreign(flag: str) -> Any:
    return typer.Option(flag, hidden=True)


def serve(
    model: Annotated[
        str, typer.Argument(help="Target: embedded, a Hugging Face folder, a GGUF file or a hub name.")
    ] = "embedded",
    draft: DraftOption = None,
    block_size: BlockSizeOption = None,
    dtype: DtypeOption = "bfloat16",
    quantization: QuantizationOption = None,
    device: DeviceOption = "cpu",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: a free one.")] = 30000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key", envvar="FLASHDRAFT_API_KEY", help="A key that clients must send; may be repeated."
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option("--served-model-name", help="Name in the API; may be repeated.  [default: MODEL]"),
    ] = None,
    max_running_requests: Annotated[int, typer.Option(help="Answers decoded at one time.")] = 32,
    max_queue: Annotated[int, typer.Option(help="Answers that may wait; more get 429.")] = 128,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request body.")] = 4 << 20,
    max_n: Annotated[int, typer.Option(help="Most answers of one request.")] = 16,
    max_answer_tokens: Annotated[
        int | None, typer.Option(help="Longest answer.  [default: what the context leaves]")
    ] = None,
    drain_s: Annotated[
        int, typer.Option("--drain-seconds", help="After SIGTERM, time for what is under way.")
    ] = 60,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file of option: value.", is_eager=True, callback=_read_config),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration, and stop.")] = False,
    speculative_config: Annotated[str | None, typer.Option(help="vLLM's JSON.")] = None,
    speculative_algorithm: Annotated[str | None, typer.Option(help="SGLang's: DFLASH.")] = None,
    speculative_draft_model_path: Annotated[str | None, typer.Option(help="SGLang's --draft.")] = None,
    speculative_num_draft_tokens: Annotated[int | None, typer.Option(help="SGLang's --block-size.")] = None,
    tp_size: Annotated[int | None, _foreign("--tp-size")] = None,
    mem_fraction_static: Annotated[float | None, _foreign("--mem-fraction-static")] = None,
    max_num_batched_tokens: Annotated[int | None, _foreign("--max-num-batched-tokens")] = None,
    attention_backend: Annotated[str | None, _foreign("--attention-backend")] = None,
) -> None:
    """Serve a model with OpenAI's API; a playground is at /.

    \b
    Examples:
      flashdraft serve
      flashdraft serve path/to/model --draft path/to/drafter --block-size 8 --port 8000
      flashdraft serve --config server.yaml --dry-run
    """
    _run(locals())


def _run(said: dict[str, Any]) -> None:
    """Resolve what was said, then print it or serve."""
    from flashdraft.server.config import ServerConfig

    speculation = _speculation(said)
    config = ServerConfig(
        model_names=tuple(said["served_model_name"] or [said["model"]]),
        api_keys=tuple(said["api_key"] or []),
        **{name: said[name] for name in ("max_running_requests", "max_queue", "max_body_bytes", "max_n")},
        max_answer_tokens=said["max_answer_tokens"],
    )
    if said["dry_run"]:
        typer.echo(_document(said, config, speculation) + _memory(said, config, speculation), nl=False)
    else:
        _serve(said, config, speculation)


def _speculation(said: dict[str, Any]) -> "Speculation":
    from flashdraft.server.peer_flags import Speculation, from_sglang, from_vllm, merged, refuse_foreign

    one_device = "the model runs on one device, in its own memory"
    refuse_foreign(
        {
            "--tp-size": (None if said["tp_size"] == 1 else said["tp_size"], one_device),
            "--mem-fraction-static": (said["mem_fraction_static"], one_device),
            "--max-num-batched-tokens": (said["max_num_batched_tokens"], "requests are not batched"),
            "--attention-backend": (
                said["attention_backend"],
                "attention takes the form that suits its mask",
            ),
        }
    )
    vllm = said["speculative_config"]
    names = ("speculative_algorithm", "speculative_draft_model_path", "speculative_num_draft_tokens")
    return merged(
        flashdraft=Speculation(said["draft"], parse_block_size(said["block_size"])),
        vLLM=from_vllm(vllm) if vllm else Speculation(),
        SGLang=from_sglang(*(said[name] for name in names)),
    )


def _document(said: dict[str, Any], config: "ServerConfig", speculation: "Speculation") -> str:
    """The resolved configuration as YAML that --config reads; keys of the API are left out."""
    import yaml

    resolved = {name: said[name] for name in ("model", "dtype", "quantization", "device", "host", "port")}
    resolved |= {"draft": speculation.draft, "block_size": speculation.block_size}
    resolved |= {"served_model_name": list(config.model_names), "drain_s": said["drain_s"]}
    names = ("max_running_requests", "max_queue", "max_body_bytes", "max_n", "max_answer_tokens")
    resolved |= {name: getattr(config, name) for name in names}
    num_keys = len(config.api_keys)
    note = f"# API keys: {num_keys}, not shown\n" if num_keys else "# API keys: none, everybody is served\n"
    told = {name: value for name, value in resolved.items() if value is not None}
    return note + str(yaml.safe_dump(told, sort_keys=False))


def _memory(said: dict[str, Any], config: "ServerConfig", speculation: "Speculation") -> str:
    """The memory plan as comments; without configs to read, why there is none."""
    from flashdraft.checkpoint.embedded import EMBEDDED
    from flashdraft.engine.memory_plan import plan_memory
    from flashdraft.engine.scheduler import EngineConfig
    from flashdraft.errors import CheckpointError

    draft = speculation.draft or (EMBEDDED if said["model"] == EMBEDDED else "none")
    size = speculation.block_size if isinstance(speculation.block_size, int) else None
    engine = EngineConfig(max_running=config.max_running_requests)
    try:
        drafter = None if draft == "none" else draft
        plan = plan_memory(said["model"], drafter, said["dtype"], engine, size).to_text()
    except CheckpointError as error:
        plan = f"memory: not known ({' '.join(str(error).split())})"
    return "".join(f"# {line}\n" for line in plan.splitlines())


def _serve(said: dict[str, Any], config: "ServerConfig", speculation: "Speculation") -> None:
    from flashdraft.checkpoint.load import generation_defaults
    from flashdraft.engine.async_engine import AsyncEngine
    from flashdraft.server.app import build_app
    from flashdraft.server.run import run_server
    from flashdraft.server.service import Service
    from flashdraft.spec_decode.controller import AUTO

    llm = open_llm(
        said["model"],
        speculation.draft,
        said["dtype"],
        said["device"],
        speculation.block_size,
        config.max_running_requests,
        said["quantization"],
    )
    context_len = llm.target.config.max_position_embeddings
    defaults = generation_defaults(said["model"])
    if llm.block_size == AUTO:
        with Console(stderr=True).status("measuring this machine's steps"):
            llm.engine.control.calibrate(config.max_running_requests)
    engine = AsyncEngine(llm.engine)
    service = Service(engine, llm.tokenizer, context_len, llm.max_block_size, config, defaults)
    run_server(build_app(service), said["host"], said["port"], said["drain_s"])
