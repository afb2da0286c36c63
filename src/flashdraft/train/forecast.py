"""What a training run will take, from the networks' shapes: memory of a GPU, time of a step, traffic.

Parameters are counted on the meta device; nothing is loaded. The layout is that of ranks.py: each host's GPUs share the
target's layers, the drafter is whole in each GPU, its float32 weights and momentum lie with one GPU for each matrix.
Rates are the data sheet's times a share: for narrow networks what runs of the embedded target reached on an H200, for
wide ones what five steps of a 27B's recipe did there (benchmarks/results/h200/rehearsal_27b.json).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flashdraft.gpus import Gpu
from flashdraft.models.base import build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig
from flashdraft.train.config import TrainConfig
from flashdraft.train.ranks import Ranks

GB = 10**9
BF16, FLOAT32 = 2, 4
WIDE = 2048  # from this width on matrix products are large enough for WIDE_SHARE
# Of the peak, all of a step counted: recipes/smollm2-135m/train_speed_*.json (24 to 27 %), rehearsal_27b.json.
NARROW_SHARE, WIDE_SHARE = 0.25, 0.58
LINK_SHARE, NETWORK = 0.7, 50e9 * 0.7  # assumed; bytes a second between hosts, one way (400 Gbit/s)
CONTEXT_BYTES = 2e9  # of CUDA and what its allocator cannot use
LOSS_ROWS = 8192  # the head keeps no more rows of logits


@dataclass(frozen=True)
class Plan:
    """One way to train: rows on each GPU in a forward, forwards in a step."""

    rows: int
    accumulate: int
    recompute: bool
    num_gpus: int = 64
    gpus_per_host: int = 8
    seq_len: int = 4096
    blocks_per_row: int = 512
    slots_per_block: float = 4
    looks_at_all: bool = (
        False  # D-PACE asks the head for every slot, with accumulation in forwards of their own
    )

    @classmethod
    def of(cls, config: TrainConfig, num_gpus: int, gpus_per_host: int) -> "Plan":
        """That of a run's settings."""
        return cls(
            rows=config.rows_per_step // (num_gpus * config.accumulate),
            accumulate=config.accumulate,
            recompute=config.recompute,
            num_gpus=num_gpus,
            gpus_per_host=gpus_per_host if config.shard_target else 1,
            seq_len=config.seq_len,
            blocks_per_row=config.blocks_per_row,
            slots_per_block=config.slots_per_block,
            looks_at_all=config.weighting == "dpace",
        )


class PairSizes:
    """Parameters of a target (by its transformers config) and a drafter."""

    def __init__(self, target_config: Any, config: DFlashConfig) -> None:
        self.target_config = getattr(target_config, "text_config", None) or target_config
        self.config = config
        with torch.device("meta"):
            target, self.drafter = build_target(target_config), DFlashModel(config)
        layers = [module for module in target.modules() if type(module).__name__.endswith("Layer")]
        self.layers, self.largest_layer = sum(map(_count, layers)), max(map(_count, layers))
        self.whole = _count(target) - self.layers
        self.head = target.head_weight().numel()
        self.draft = _count(self.drafter)
        self.of_optimizer = sum(_muon_operations(p.shape) for p in self.drafter.parameters() if p.dim() == 2)
        self.active_layers = self.layers - _idle_experts(self.target_config, self.layers)

    def largest_share(self, num_gpus: int) -> int:
        """Parameters of the drafter whose float32 state lies with the GPU that has most of it."""
        counts = [parameter.numel() for parameter in self.drafter.parameters()]
        loads = [0] * num_gpus
        for count, owner in zip(counts, Ranks(0, num_gpus).owners(counts), strict=True):
            loads[owner] += count
        return max(loads)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _muon_operations(shape: torch.Size) -> int:
    """Of the five steps that make a gradient orthogonal: X X^T, its square, and their sum times X."""
    short, long = sorted(shape)
    return 5 * (4 * short * short * long + 2 * short**3)


def _idle_experts(config: Any, num_layers_parameters: int) -> int:
    """Parameters of the layers that a token does not meet: those of experts that it is not sent to."""
    num_experts = getattr(config, "num_experts", None)
    if not num_experts:
        return 0
    each = 3 * config.hidden_size * config.moe_intermediate_size
    idle = int(config.num_hidden_layers * (num_experts - config.num_experts_per_tok) * each)
    return min(idle, num_layers_parameters)


def activations(pair: PairSizes, plan: Plan) -> dict[str, float]:
    """Bytes of a forward's tensors on one GPU, estimated from the widest ones that live together."""
    config, hidden = pair.config, pair.config.hidden_size
    tokens, slots = plan.rows * plan.seq_len, plan.rows * plan.blocks_per_row * pair.config.block_size
    # What a layer keeps of a slot: two norms' and the MLP's inputs, queries and output, gate, up and their product.
    attention = config.num_attention_heads * config.head_dim
    kept = 4 * hidden + 3 * attention + 3 * config.intermediate_size
    layers = config.num_hidden_layers
    of_slots = slots * (layers * hidden + kept if plan.recompute else layers * kept)
    context = tokens * layers * 2 * config.num_key_value_heads * config.head_dim
    loss_rows = plan.rows * plan.blocks_per_row * plan.slots_per_block
    logits = 2 * min(loss_rows, LOSS_ROWS)
    if plan.looks_at_all:
        logits = max(logits, min(slots, LOSS_ROWS))
    widest = (
        getattr(pair.target_config, "intermediate_size", None) or pair.target_config.moe_intermediate_size
    )
    return {
        "features": BF16 * tokens * len(config.target_layer_ids) * hidden,
        "target's widest layer": BF16 * tokens * (2 * hidden + 3 * widest),
        "drafter's activations": BF16 * (of_slots + context),
        "logits and their gradient": BF16 * logits * config.vocab_size,
    }


def memory(pair: PairSizes, plan: Plan) -> dict[str, float]:
    """Bytes on the GPU that has most."""
    gathered = 2 * BF16 * pair.largest_layer if plan.gpus_per_host > 1 else 0
    return {
        "target's layers, this GPU's part": BF16 * pair.layers / plan.gpus_per_host,
        "embedding, head, norms, whole": BF16 * pair.whole,
        "two gathered layers": gathered,
        "drafter and its gradient": 2 * BF16 * pair.draft,
        # This step's, and what this GPU's optimizer keeps of the last one until the next.
        "gradients in float32": FLOAT32 * (pair.draft + pair.largest_share(plan.num_gpus)),
        "float32 weights and momentum, this GPU's": 2 * FLOAT32 * pair.largest_share(plan.num_gpus),
        **activations(pair, plan),
    }


def traffic(pair: PairSizes, plan: Plan) -> dict[str, float]:
    """Bytes that one GPU receives in a step."""
    others = (plan.gpus_per_host - 1) / plan.gpus_per_host
    shared = plan.num_gpus > 1
    return {
        "target's layers, within the host": BF16 * pair.layers * others * plan.accumulate,
        "gradients to their owners, between hosts": FLOAT32 * pair.draft * shared,
        "weights from their owners, between hosts": BF16 * pair.draft * shared,
    }


def operations(pair: PairSizes, plan: Plan) -> float:
    """Of a step on one GPU: matrix products without attention scores, Muon's among them."""
    tokens, slots = plan.rows * plan.seq_len, plan.rows * plan.blocks_per_row * pair.config.block_size
    loss_rows = plan.rows * plan.blocks_per_row * plan.slots_per_block
    again = 8 if plan.recompute else 6
    of_forward = 2 * pair.active_layers * tokens + again * pair.draft * slots + 4 * pair.head * loss_rows
    if plan.looks_at_all:
        of_forward += 2 * pair.head * slots
        if plan.accumulate > 1:
            of_forward += 2 * pair.active_layers * tokens + 2 * pair.draft * slots
    return plan.accumulate * of_forward + pair.of_optimizer / plan.num_gpus


def seconds(pair: PairSizes, plan: Plan, gpu: Gpu, share: float | None = None) -> dict[str, float]:
    """Seconds of a step's computing and of each kind of traffic; ``share``: of the peak, None: what is known of it."""
    if share is None:
        share = WIDE_SHARE if pair.config.hidden_size >= WIDE else NARROW_SHARE
    sent = list(traffic(pair, plan).values())
    one_host = plan.num_gpus <= max(plan.gpus_per_host, 8)
    between = gpu.link * LINK_SHARE if one_host else NETWORK
    return {
        "computing": operations(pair, plan) / (gpu.peak * share),
        "within the host (beside computing)": sent[0] / (gpu.link * LINK_SHARE),
        "between hosts (after it)": (sent[1] + sent[2]) / between,
    }


@dataclass(frozen=True)
class Forecast:
    """What a run will take on each GPU."""

    memory: dict[str, float]  # bytes
    free: float  # bytes of the GPU's memory
    step_s: float
    tokens_per_s: float  # of all GPUs
    blocks_per_s: float
    hours: float
    disk: dict[str, float]  # bytes

    @property
    def memory_bytes(self) -> float:
        """Together, with what CUDA itself takes."""
        return sum(self.memory.values()) + CONTEXT_BYTES

    @property
    def fits(self) -> bool:
        """Whether a GPU's memory is enough."""
        return self.memory_bytes <= self.free

    def to_text(self) -> str:
        """For people."""
        fits = (
            "fits"
            if self.fits
            else "DOES NOT FIT: fewer --rows-per-step, --accumulate, --recompute or more GPUs"
        )
        lines = [f"memory of a GPU: {self.memory_bytes / GB:.1f} of {self.free / GB:.0f} GB, {fits}"]
        lines += [f"  {size / GB:>7.1f}  {name}" for name, size in self.memory.items() if size >= GB / 20]
        lines += [
            f"a step: {self.step_s:.2f} s, {self.tokens_per_s:,.0f} tokens/s, {self.blocks_per_s:,.0f} blocks/s",
            f"training: {duration(self.hours)}",
            f"disk: {sum(self.disk.values()) / GB:.1f} GB ("
            + ", ".join(f"{name} {size / GB:.1f}" for name, size in self.disk.items() if size >= GB / 20)
            + ")",
        ]
        return "\n".join(lines)


def duration(hours: float) -> str:
    """For people: minutes below two hours."""
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.0f} minutes" if hours >= 1 / 6 else f"{max(60 * hours, 0.1):.1f} minutes"


def forecast(
    pair: PairSizes, config: TrainConfig, gpu: Gpu, num_gpus: int, answer_tokens: float, keeps_features: bool
) -> Forecast:
    """The forecast of a run with ``config`` on ``num_gpus`` of ``gpu``; ``answer_tokens``: prompts included."""
    plan = Plan.of(config, num_gpus, min(num_gpus, 8))
    spent = list(seconds(pair, plan, gpu).values())
    step_s = max(spent[:2]) + spent[2]
    blocks_per_s = config.rows_per_step * config.blocks_per_row / step_s
    hours = config.total_blocks / blocks_per_s / 3600
    if config.max_minutes:
        hours = min(hours, config.max_minutes / 60)
    disk = {
        "answers": _DISK_BYTES_PER_TOKEN * answer_tokens,
        "checkpoint": 2 * FLOAT32 * pair.draft,
        "drafter": BF16 * pair.draft,
    }
    if keeps_features:
        disk["features"] = BF16 * answer_tokens * len(pair.config.target_layer_ids) * pair.config.hidden_size
    tokens_per_s = config.rows_per_step * config.seq_len / step_s
    return Forecast(memory(pair, plan), gpu.memory, step_s, tokens_per_s, blocks_per_s, hours, disk)


_DISK_BYTES_PER_TOKEN = 2.5  # of token ids in zstd's Parquet, measured on answers of the embedded target
