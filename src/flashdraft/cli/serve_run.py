"""The options of ``flashdraft serve``, resolved: printed, or served."""

from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

import typer

from flashdraft.admission import AUTO, check_block_size, check_tree
from flashdraft.checkpoint.embedded import EMBEDDED
from flashdraft.checkpoint.load import generation_defaults, outline_draft, outline_target
from flashdraft.cli.options import measure_steps, open_llm, parse_block_size
from flashdraft.cli.serve_options import ServeOptions
from flashdraft.engine.async_engine import AsyncEngine
from flashdraft.engine.memory_plan import plan_memory
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.llm import check_window, keeps_codes, served_dtype
from flashdraft.models.base import TargetModel
from flashdraft.server.config import ServerConfig
from flashdraft.server.hosts import ANY, LOOPBACK, is_loopback
from flashdraft.server.logs import configure_logs
from flashdraft.server.peer_flags import Speculation, from_sglang, from_vllm, merged, refuse_foreign
from flashdraft.server.run import run_server
from flashdraft.server.service import Service
from flashdraft.spec_decode.build import set_window, trained_drafter
from flashdraft.spec_decode.drafter import Drafter

# By prompts, on a GPU: 3 times a quiet step is what neighbours' p99 may be. A CPU would pay 7 to 13 % of its tokens.
_SLOWDOWN = 2.5
_AS_GIVEN = (
    *("revision", "draft_tree", "dtype", "quantization", "device", "host", "port", "draft_window_size"),
    *(
        "allowed_hosts",
        "attention_backend",
        "keep_codes",
        "allowed_origins",
        "context_length",
        "max_num_batched_tokens",
        "chunked_prefill_size",
        "max_prefill_slowdown",
        "max_total_tokens",
        "max_prefix_states",
        "drain_s",
        "log_format",
    ),
)
_LIMITS = (
    *(
        "max_running_requests",
        "max_queue",
        "max_per_client",
        "max_body_bytes",
        "max_connections",
        "client_timeout_s",
    ),
    *("max_n", "max_answer_tokens"),
)


def run_serve(options: ServeOptions, listening: socket | None) -> None:
    """Serve on ``listening``, or, for None, print the resolved configuration.

    Raises UsageError for options that do not go together.
    """
    speculation = _speculation(options)
    config = ServerConfig(
        model_names=tuple(options.served_model_name or [options.model_name]),
        api_keys=tuple(options.api_key or []),
        allowed_hosts=allowed_hosts(options),
        allowed_origins=tuple(options.allowed_origins or ()),
        max_queue=options.max_queue,
        max_per_client=options.max_per_client,
        max_running_requests=options.max_running_requests,
        max_body_bytes=options.max_body_bytes,
        max_connections=options.max_connections,
        client_timeout_s=options.client_timeout_s,
        max_n=options.max_n,
        max_answer_tokens=options.max_answer_tokens,
        log_requests=options.log_requests,
    )
    engine_config = _engine_config(options)
    template = None if options.chat_template is None else _template(options.chat_template)
    if listening is None:
        document = _document(options, config, speculation)
        typer.echo(document + _plan(options, engine_config, speculation), nl=False)
    else:
        _serve(options, config, engine_config, speculation, template, listening)


def _speculation(options: ServeOptions) -> Speculation:
    refuse_foreign(
        {
            "--tp-size": (None if options.tp_size == 1 else options.tp_size, "the model runs on one device"),
            "--mem-fraction-static": (
                options.mem_fraction_static,
                "the cache's size is told in tokens, by --max-total-tokens; --dry-run prints the memory plan",
            ),
            "--speculative-draft-attention-backend": (
                options.draft_attention_backend,
                "the drafter runs as its target does, see --attention-backend",
            ),
            "--mamba-scheduler-strategy": (
                options.mamba_scheduler_strategy,
                "states of gated delta layers are kept at page borders",
            ),
            "--trust-remote-code": (options.trust_remote_code or None, "no code of a checkpoint is ever run"),
            "--model-path": (options.model_path, "the model is the first argument: flashdraft serve MODEL"),
        }
    )
    vllm = options.speculative_config
    return merged(
        flashdraft=Speculation(options.draft, parse_block_size(options.block_size)),
        vLLM=from_vllm(vllm) if vllm else Speculation(),
        SGLang=from_sglang(
            options.speculative_algorithm,
            options.speculative_draft_model_path,
            options.speculative_num_draft_tokens,
        ),
    )


def _engine_config(options: ServeOptions) -> EngineConfig:
    total, slowdown = options.max_total_tokens, options.max_prefill_slowdown
    if slowdown is None and options.device.startswith("cuda"):
        slowdown = _SLOWDOWN
    config = EngineConfig(
        options.max_running_requests,
        options.max_num_batched_tokens,
        options.chunked_prefill_size,
        slowdown,
        attention_backend=options.attention_backend,
        num_checkpoints=options.max_prefix_states,
    )
    if total is None:
        return config
    if total < config.page_size:
        raise UsageError(
            f"--max-total-tokens is {total}; expected at least a page, {config.page_size} tokens"
        )
    return replace(config, num_pages=total // config.page_size)


def _model(options: ServeOptions) -> str:
    """The model's name with its revision."""
    name, revision = options.model_name, options.revision
    if revision is None:
        return name
    if name == EMBEDDED or Path(name).exists():
        raise UsageError(f"--revision is for a hub model, and {name} is here already: leave it out")
    return f"{name}@{revision}"


def _document(options: ServeOptions, config: ServerConfig, speculation: Speculation) -> str:
    """The resolved configuration as YAML that --config reads; keys of the API are left out."""
    import yaml

    resolved: dict[str, Any] = {"model": options.model_name}
    resolved |= {name: getattr(options, name) for name in _AS_GIVEN}
    resolved |= {"draft": speculation.draft, "block_size": speculation.block_size}
    resolved |= {"served_model_name": list(config.model_names)}
    resolved |= {
        "chat_template": options.chat_template and str(options.chat_template),
        "log_requests": options.log_requests and str(options.log_requests),
    }
    resolved |= {name: getattr(config, name) for name in _LIMITS}
    num_keys = len(config.api_keys)
    note = f"# API keys: {num_keys}, not shown\n" if num_keys else "# API keys: none, everybody is served\n"
    told = {name: value for name, value in resolved.items() if value is not None}
    return note + str(yaml.safe_dump(told, sort_keys=False))


def _plan(options: ServeOptions, config: EngineConfig, speculation: Speculation) -> str:
    """The memory plan as comments; without configs to read, why there is none.

    Raises UsageError for what a start would refuse, as far as configs tell.
    """
    draft = speculation.draft or (EMBEDDED if options.model_name == EMBEDDED else "none")
    block_size = speculation.block_size if isinstance(speculation.block_size, int) else None
    size = options.draft_tree or block_size  # tokens of one request that a step runs
    drafter = None if draft == "none" else draft
    model, device, backend = _model(options), options.device, config.attention_backend
    try:
        outline = outline_target(model)
        dtype = served_dtype(options.dtype, model, device, options.quantization, backend, outline)
        keeps = bool(options.keep_codes) and keeps_codes(model, dtype, device, backend, True)
        _check_by_configs(options, config, speculation, drafter, outline)
        plan = plan_memory(model, drafter, dtype, config, size, keeps, outline).to_text()
    except CheckpointError as error:
        plan = f"memory: not known ({' '.join(str(error).split())})"
    return "".join(f"# {line}\n" for line in plan.splitlines())


def _check_by_configs(
    options: ServeOptions,
    config: EngineConfig,
    speculation: Speculation,
    draft: str | None,
    target: TargetModel,
) -> None:
    """Raises UsageError for what LLM or :func:`_serve` would refuse with the weights loaded."""
    model, window = _model(options), options.draft_window_size
    drafter: Drafter | None = None
    if draft is not None:
        network = outline_draft(draft, model, target)
        set_window(network, window)
        drafter = trained_drafter(network, target)
    check_window(draft, window)
    check_tree(drafter, options.draft_tree)
    check_block_size(drafter, AUTO if speculation.block_size is None else speculation.block_size)
    _context_len(options.context_length, target.config.max_position_embeddings, config)


def _serve(
    options: ServeOptions,
    config: ServerConfig,
    engine_config: EngineConfig,
    speculation: Speculation,
    template: str | None,
    listening: socket,
) -> None:
    model = _model(options)
    llm = open_llm(
        model,
        speculation.draft,
        options.dtype,
        options.device,
        speculation.block_size,
        quantization=options.quantization,
        draft_tree=options.draft_tree,
        draft_window_size=options.draft_window_size,
        attention_backend=options.attention_backend,
        keep_codes=options.keep_codes,
    )
    llm.engine_config = engine_config
    if template is not None:
        llm.tokenizer.chat_template = template
    longest = llm.target.config.max_position_embeddings
    context_len = _context_len(options.context_length, longest, engine_config)
    measure_steps(llm, config.max_running_requests)
    engine = AsyncEngine(llm.engine)
    defaults = generation_defaults(model)
    service = Service(engine, llm.tokenizer, context_len, llm.max_block_size, config, defaults)
    configure_logs(options.log_format)
    pair = {
        "model": model,
        "drafter": speculation.draft or (EMBEDDED if model == EMBEDDED else "none"),
        "block_size": llm.block_size,
        "dtype": (options.quantization or llm.dtype) + (", weights in codes" if llm.keeps_codes else ""),
        "device": options.device,
        "context_length": context_len,
    }
    run_server(service, listening, options.drain_s, pair)


def allowed_hosts(options: ServeOptions) -> tuple[str, ...]:
    """Any where others than this machine are served; here, what the machine calls itself and what was named."""
    named = tuple(options.allowed_hosts or ())
    return (*LOOPBACK, *named) if is_loopback(options.host) or named else (ANY,)


def _template(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--chat-template {file} cannot be read: {error}") from None


def _context_len(asked: int | None, longest: int, config: EngineConfig) -> int:
    """Tokens of prompt and answer: what was asked for, at most what the model and the cache hold."""
    if asked is not None and not 2 <= asked <= longest:
        raise UsageError(f"--context-length is {asked}; expected 2 to {longest}, the model's own")
    return min(asked or longest, config.pages_for(longest) * config.page_size)
