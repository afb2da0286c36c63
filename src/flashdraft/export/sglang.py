"""The command that serves a pair with SGLang, and what SGLang 0.5.23 cannot do (read in its source; paths below)."""

from collections.abc import Sequence

from flashdraft.errors import UsageError
from flashdraft.export.config import LaunchConfig
from flashdraft.export.launch import Command, Pair, flags


def sglang_command(pair: Pair, config: LaunchConfig, more: Sequence[str] = ()) -> Command:
    """What to start, with ``more`` flags of SGLang's own. Raises UsageError, with the reason, for what it cannot do."""
    _refuse(pair, config)
    pair.check_dtype(config, more)
    pair.check_heads(config.tp)
    block_size = pair.block_size(config)
    if config.window is not None and config.window < block_size:
        raise UsageError(f"window is {config.window}; expected at least the block size, {block_size}")
    multi_node = {"nnodes": config.nodes, "node_rank": config.node_rank, "dist_init_addr": config.master}
    # Replicas each in a server of its own, behind SGLang's router, which sends a request where its prefix lies.
    is_routed = config.replicas > 1 and config.nodes == 1
    module = "sglang_router.launch_server" if is_routed else "sglang.launch_server"
    thoughts, calls = pair.parsers("sglang") if config.parsers else (None, None)
    argv = [
        *("python", "-m", module, "--model-path", pair.target),
        *flags(speculative_algorithm=pair.method.upper(), speculative_draft_model_path=pair.draft),
        # EAGLE-3 drafts token after token: as a chain, so many steps.
        *(
            flags(speculative_num_steps=block_size - 1, speculative_eagle_topk=1)
            if pair.method == "eagle3"
            else []
        ),
        *flags(speculative_num_draft_tokens=block_size, speculative_draft_window_size=config.window),
        *flags(dtype=config.dtype, tp_size=None if config.tp == 1 else config.tp),
        *flags(dp_size=None if config.replicas == 1 else config.replicas),
        *(flags(**multi_node) if config.nodes > 1 else []),
        *flags(context_length=config.max_model_len, max_running_requests=config.max_running),
        # Prefixes of hybrids are found again through checkpoints of their states.
        *(flags(mamba_radix_cache_strategy="extra_buffer") if pair.is_hybrid else []),
        *flags(reasoning_parser=thoughts, tool_call_parser=calls),
        *flags(mem_fraction_static=config.memory, host=config.host, port=config.port),
        *more,
    ]
    notes = pair.notes(config)
    if is_routed:
        notes.append("the router comes apart: pip install sglang-router==0.3.2")
    if pair.drafter is not None and any(rule.from_anchor for rule in pair.drafter.rules):
        notes.append(
            "this drafter's window was counted from the anchor in training; SGLang counts from each slot"
        )
    return Command(argv, notes=notes)


def _refuse(pair: Pair, config: LaunchConfig) -> None:
    facts = pair.check_engine("sglang")
    if pair.is_speculators and pair.drafter is None:
        raise UsageError(f"{facts.label} reads no speculators configs; expected a drafter in z-lab's format")
    if config.device != "cuda":  # arg_groups/speculative_hook.py, _handle_dflash
        raise UsageError(
            f"SGLang drafts with DFlash on cuda only, not on {config.device}: use flashdraft serve"
        )
    if config.pp > 1:
        raise UsageError(
            f"SGLang drafts with DFlash without a pipeline only; expected pp 1, found {config.pp}"
        )
    if pair.drafter is None:
        return
    if (num_rows := pair.drafter.draft_vocab_size) is not None:
        raise UsageError(
            f"SGLang drafts through the target's head only; this drafter has a head of {num_rows} rows of its own"
        )
    # models/dflash.py reads is_causal or goes by the layer's type, and knows no speculators config.
    is_causal = pair.raw.get("is_causal")
    theirs = [
        rule.window is not None if is_causal is None else bool(is_causal) for rule in pair.drafter.rules
    ]
    if pair.is_speculators or theirs != [rule.is_causal for rule in pair.drafter.rules]:
        raise UsageError(
            "SGLang does not read this drafter's config as it was meant; write it anew with flashdraft convert --draft"
            f" {pair.draft} --to z-lab --out FOLDER"
        )
