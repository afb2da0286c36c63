"""``flashdraft serve``: the OpenAI-compatible server and its playground."""

from pathlib import Path
from typing import Annotated

import typer

from flashdraft.cli import serve_options as flag
from flashdraft.cli.options import (
    BlockSizeOption,
    DeviceOption,
    DraftOption,
    DraftTreeOption,
    DtypeOption,
    QuantizationOption,
)
from flashdraft.errors import UsageError


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


def serve(
    model: Annotated[
        str, typer.Argument(help="Target: embedded, a Hugging Face folder, a GGUF file or a hub name.")
    ] = "embedded",
    draft: DraftOption = None,
    block_size: BlockSizeOption = None,
    draft_tree: DraftTreeOption = None,
    dtype: DtypeOption = "bfloat16",
    quantization: QuantizationOption = None,
    device: DeviceOption = "cpu",
    revision: flag.Revision = None,
    chat_template: flag.ChatTemplate = None,
    draft_window_size: flag.DraftWindowSize = None,
    context_length: flag.ContextLength = None,
    max_running_requests: flag.MaxRunning = 32,
    max_num_batched_tokens: flag.MaxBatchedTokens = 512,
    max_total_tokens: flag.MaxTotalTokens = None,
    host: flag.Host = "127.0.0.1",
    port: flag.Port = 30000,
    api_key: flag.ApiKeys = None,
    served_model_name: flag.ServedNames = None,
    max_queue: flag.MaxQueue = 128,
    max_body_bytes: flag.MaxBody = 4 << 20,
    max_n: flag.MaxN = 16,
    max_answer_tokens: flag.MaxAnswer = None,
    drain_s: flag.DrainSeconds = 60,
    log_format: flag.LogFormat = "text",
    log_requests: flag.LogRequests = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file of option: value.", is_eager=True, callback=_read_config),
    ] = None,
    dry_run: flag.DryRun = False,
    speculative_config: flag.VllmConfig = None,
    speculative_algorithm: flag.SglangAlgorithm = None,
    speculative_draft_model_path: flag.SglangDraft = None,
    speculative_num_draft_tokens: flag.SglangBlock = None,
    tp_size: flag.TensorParallel = None,
    mem_fraction_static: flag.MemoryFraction = None,
    attention_backend: flag.AttentionBackend = None,
    mamba_scheduler_strategy: flag.MambaStrategy = None,
    trust_remote_code: flag.TrustRemoteCode = None,
    model_path: flag.ModelPath = None,
) -> None:
    """Serve a model with OpenAI's API; a playground is at /.

    \b
    Examples:
      flashdraft serve
      flashdraft serve path/to/model --draft path/to/drafter --block-size 8 --port 8000
      flashdraft serve --config server.yaml --dry-run
    """
    from flashdraft.cli.serve_run import serve_or_tell

    serve_or_tell(locals())
