"""The command that serves a pair with vLLM, and what vLLM 0.33 cannot do (read in its source; paths below)."""

import json
from collections.abc import Sequence
from typing import Any

from flashdraft.errors import UsageError
from flashdraft.export.config import LaunchConfig
from flashdraft.export.launch import Command, Pair, flags

# Whose layers hand out features across a pipeline too: supports_aux_hidden_states_over_pp, in model_executor/models/.
_PIPELINED = ("llama", "qwen3")


def vllm_command(pair: Pair, config: LaunchConfig, more: Sequence[str] = ()) -> Command:
    """What to start, with ``more`` flags of vLLM's own. Raises UsageError, with the reason, for what it cannot do."""
    _refuse(pair, config)
    pair.check_dtype(config, more)
    pair.check_heads(config.tp)
    speculative: dict[str, Any] = {
        "method": pair.method,
        "model": pair.draft,
        "num_speculative_tokens": pair.block_size(config) - 1,
    }
    if pair.drafter is not None and pair.drafter.num_attention_heads % config.tp:
        speculative["draft_tensor_parallel_size"] = 1
    on_cpu = config.device == "cpu"
    # vLLM's CPU build comes under another distribution name, which its `vllm serve` looks up in vain.
    start = ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", pair.target]
    argv = [
        *(start if on_cpu else ["vllm", "serve", pair.target]),
        *flags(speculative_config=json.dumps(speculative), dtype=config.dtype),
        *flags(tensor_parallel_size=None if config.tp == 1 else config.tp),
        *flags(pipeline_parallel_size=None if config.pp == 1 else config.pp),
        # Replicas behind one address: vLLM hands requests to the one with the shortest queue.
        *flags(data_parallel_size=None if config.replicas == 1 else config.replicas),
        *_nodes(config),
        *flags(max_model_len=config.max_model_len, max_num_seqs=config.max_running),
        *([] if on_cpu else flags(gpu_memory_utilization=config.memory, attention_backend="flash_attn")),
        *_parsers(pair, config),
        *flags(host=config.host, port=config.port),
        *more,
    ]
    env = {}
    if on_cpu and config.memory is not None:
        env["VLLM_CPU_KVCACHE_SPACE"] = f"{config.memory:g}"
    if pair.is_mixed:
        env["VLLM_USE_V2_MODEL_RUNNER"] = "1"  # for releases where it is not the default
    return Command(argv, env, _notes(pair, config))


def _refuse(pair: Pair, config: LaunchConfig) -> None:
    kind = pair.target_config.model_type
    facts = pair.check_engine("vllm")
    if pair.is_domino:
        raise UsageError(f"{facts.label} serves no Domino drafters: SGLang does")
    if pair.is_mixed and config.device == "cpu":
        # models/qwen3_dflash.py, _resolve_layer_attention: several KV groups exist in the V2 runner alone.
        raise UsageError(
            "the drafter has sliding layers beside full ones, which needs vLLM's V2 model runner, and its CPU build has"
            " the V1 runner only; expected layers of one type: serve it with flashdraft serve, or on cuda"
        )
    if config.pp > 1 and kind not in _PIPELINED:
        raise UsageError(
            f"vLLM gives no features of {kind} targets across a pipeline; expected pp 1 and more tp"
        )
    if config.window is not None:
        raise UsageError(
            "vLLM has no flag for a draft window; leave --window out: the drafter's own layers say theirs"
        )
    if pair.is_speculators and pair.drafter is not None:
        # transformers_utils/configs/speculators/algos.py, update_dflash: one causality for all layers.
        theirs = not pair.raw.get("sliding_window_non_causal", True)
        if any(rule.is_causal != theirs for rule in pair.drafter.rules):
            raise UsageError(
                f"vLLM reads all layers of this speculators drafter as {'' if theirs else 'not '}causal within the"
                f" block, and it was not trained so: write it anew with flashdraft convert --draft {pair.draft} --to"
                " z-lab --out FOLDER"
            )


def _parsers(pair: Pair, config: LaunchConfig) -> list[str]:
    if not config.parsers:
        return []
    thoughts, calls = pair.parsers("vllm")
    return [*flags(reasoning_parser=thoughts), "--enable-auto-tool-choice", *flags(tool_call_parser=calls)]


def _nodes(config: LaunchConfig) -> list[str]:
    if config.nodes == 1:
        return []
    address, _, port = config.master.rpartition(":")
    argv = flags(nnodes=config.nodes, node_rank=config.node_rank, master_addr=address, master_port=port)
    return [*argv, "--headless"] if config.node_rank else argv


def _notes(pair: Pair, config: LaunchConfig) -> list[str]:
    notes = pair.notes(config)
    if config.device == "cpu":
        notes.append("preload libiomp5 and tcmalloc (LD_PRELOAD): vLLM's CPU build is faster with them")
    drafter = pair.drafter
    if config.device == "cpu" and drafter is not None and drafter.num_hidden_layers > 1:
        # models/qwen3_dflash.py, _normalize_context_k: stacked weights, of which the CPU kernel reads the first row.
        notes.append(
            "vLLM 0.32's CPU build norms the context keys of all draft layers with the first layer's weight: answers"
            " are right, but fewer drafts are accepted; mend it with benchmarks/peers/vllm_cpu_context_norm.patch"
            " from flashdraft's repository"
        )
    if drafter is not None and any(rule.from_anchor for rule in drafter.rules):
        notes.append(
            "this drafter's window was counted from the anchor in training; vLLM counts from each slot"
        )
    return notes
