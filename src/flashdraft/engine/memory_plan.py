"""What serving a pair will take, from its configs alone: nothing is fetched or allocated but shapes.

Sums of what the networks and caches say of themselves on the meta device; a step's activations, and what recordings
and PyTorch's matrix products keep on a GPU, are estimates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flashdraft.admission import MAX_TREE
from flashdraft.backends.base import recorded_tokens
from flashdraft.cache.hybrid_cache import HybridCache
from flashdraft.cache.kv_cache import KVShape
from flashdraft.cache.paged_kv_cache import power_of_two
from flashdraft.cache.paged_step import grouped
from flashdraft.cache.window_pages import WindowRoom
from flashdraft.checkpoint.embedded import drafts_among_all
from flashdraft.checkpoint.load import outline_draft, outline_target
from flashdraft.checkpoint.weights import check_dtype
from flashdraft.cuda.chunk_lengths import CHUNK_LENGTHS, MOST_DELTA_TOKENS, MOST_STORED_TOKENS
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.drafter_network import DrafterNetwork
from flashdraft.models.llama import LlamaModel
from flashdraft.models.qwen3_5 import GatedDeltaNet, Qwen3_5Model
from flashdraft.ops.quantized import QuantizedLinear, QuantizedWeight, rows_at_once

_GB = 10**9
_USABLE = 0.9  # of a device's memory; the rest is the CUDA context, fragments and peaks
# How layers run that have kernels which read pages in place (cuda/target.py): there all of them keep all tokens.
_READ_IN_PLACE = LlamaModel.forward, Qwen3_5Model.forward
# What cuBLAS and cuBLASLt keep on a Hopper for each thread and stream that ran a product (measured): of the thread that
# starts an engine and of the one that steps it, each as it runs and as it records.
_WORKSPACE_BYTES = 4 * (2**25 + 2**20)
# Of PyTorch's blocks for matrices of more than 1 MiB: up to 1 MiB behind one is not split off (measured, on average).
_BEHIND_BYTES = 2**17
_KEY_BOUNDS = 2  # that the steps of one load are recorded for, as a rule (cuda/rows.keys_bound)
DEVICES = ((1, 80), (1, 141), (2, 80))  # how many of how many GB


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes, for ``max_running`` requests with blocks of ``block_size`` tokens."""

    max_running: int
    block_size: int
    weight_bytes: int
    draft_weight_bytes: int
    kv_bytes: int  # of one token, all attention layers of the target
    draft_kv_bytes: int  # of one token
    state_bytes: int  # of one sequence: states of gated delta layers
    staged_bytes: int  # of one token in a step: what is kept of it until such layers' states are committed
    num_checkpoints: int  # states kept for prefixes, beside one of each request
    activation_bytes: int  # of a step's drafts, blocks with their logits or prompts: a layer's widest tensors
    kv_heads: int
    page_size: int = 16
    step_tokens: int = 512  # of one step's blocks
    layer_bytes: int = 0  # of one token in the largest layer of keys and values
    window_bytes: int = 0  # of ``kv_bytes``, in layers that see a window
    draft_window_bytes: int = 0  # of ``draft_kv_bytes`` likewise
    window_tokens: int = 0  # that those hold at most, of all requests together
    gpu_window_bytes: int = (
        0  # of ``window_bytes`` on a GPU, where kernels that read pages in place cut no layer
    )
    chunk_bytes: int = (
        0  # of recorded chunks of prompts: what lies between recordings, and what one takes as it runs
    )
    staged_tokens: int = 0  # of the largest step on a GPU, for which ``staged_bytes`` are kept
    beside_bytes: int = 0  # on a GPU: what recorded steps take and return, and what cuBLAS and PyTorch keep

    @property
    def spare_bytes(self) -> int:
        """Of pages for what a step stages beyond its rows' own; on a GPU each row has room for a whole tree."""
        return self._spare(self.max_running * MAX_TREE)

    def _spare(self, num_staged: int) -> int:
        whole = (self.max_running + 1) * self.page_size
        drafter = self.max_running * self.block_size + whole
        return (num_staged + whole) * self.kv_bytes + drafter * self.draft_kv_bytes

    def storage_bytes(self, num_tokens: int) -> int:
        """All keys and values that an engine with pages for ``num_tokens`` holds (eager, graphs, native)."""
        blocks = max(self.step_tokens, self.max_running * self.block_size)
        num_staged = min(self.max_running * MAX_TREE, blocks)
        window_bytes = self.window_bytes + self.draft_window_bytes
        return self._kept_bytes(num_tokens, window_bytes) + self._spare(num_staged)

    def _kept_bytes(self, num_tokens: int, window_bytes: int) -> int:
        """Of so many tokens, of which layers with windows, ``window_bytes`` a token, hold no more than they can see."""
        behind = max(num_tokens - self.window_tokens, 0)
        return num_tokens * (self.kv_bytes + self.draft_kv_bytes) - behind * window_bytes

    def serving_bytes(self, num_tokens: int) -> int:
        """All that one GPU holds while it serves with pages for ``num_tokens``."""
        return self.device_bytes(1) + self._kept_bytes(num_tokens, self.gpu_window_bytes)

    def copied_bytes(self, lengths: Sequence[int]) -> int:
        """What attention in PyTorch copies at a time of requests of so many tokens: a group of rows, one layer."""
        return max(len(group) * lengths[group[-1]] for group in grouped(lengths)) * self.layer_bytes

    def device_bytes(self, num_devices: int) -> int:
        """What each of ``num_devices`` that share every layer holds before any token of context."""
        states = (self.num_checkpoints + self.max_running + 1) * self.state_bytes  # one for padding
        states += self.staged_tokens * self.staged_bytes
        shared = self.weight_bytes + self.draft_weight_bytes + states + self.spare_bytes
        return (shared + self.activation_bytes + self.chunk_bytes) // num_devices + self.beside_bytes

    def context_tokens(self, num_devices: int, device_gb: int) -> int:
        """Tokens of context that fit, of all requests together; negative where not even the rest does."""
        free = int(device_gb * _GB * _USABLE) - self.device_bytes(num_devices)
        # Heads of keys and values are not cut: with fewer of them than devices, they are repeated.
        free *= min(num_devices, self.kv_heads)
        within = free // (self.kv_bytes + self.draft_kv_bytes)
        if within <= self.window_tokens:
            return within
        behind = free - self._kept_bytes(self.window_tokens, self.gpu_window_bytes)
        # Where all layers have windows, a token behind them takes a place in a table alone.
        each = self.kv_bytes + self.draft_kv_bytes - self.gpu_window_bytes
        return self.window_tokens + behind // max(each, 1)

    def to_text(self) -> str:
        """For people: one thing a line."""
        requests = f"{self.max_running} requests with blocks of {self.block_size}"
        lines = [
            f"weights: target {_gb(self.weight_bytes)}, drafter {_gb(self.draft_weight_bytes)}",
            f"keys and values: {self.kv_bytes:,} B a token for the target, {self.draft_kv_bytes:,} B for the drafter",
            *self._windows(),
            f"beside its pages: {_gb(self.spare_bytes)} for what a step stages",
            *self._states(),
            f"activations of a step: about {_gb(self.activation_bytes)} ({requests})",
            f"recorded chunks of prompts: about {_gb(self.chunk_bytes)}",
            f"kept beside by recorded steps, cuBLAS and PyTorch: about {_gb(self.beside_bytes)}",
        ]
        for num, size in DEVICES:
            tokens = self.context_tokens(num, size)
            fits = f"{tokens:,} tokens of context" if tokens > 0 else "does not fit"
            lines.append(f"{num} x {size} GB, {_USABLE:.0%} used: {fits}{_HOW[num]}")
        return "\n".join(lines)

    def _windows(self) -> list[str]:
        if not self.gpu_window_bytes:
            return []
        return [
            f"of them {self.gpu_window_bytes:,} B in layers that see a window, for {self.window_tokens:,} tokens"
            " at most"
        ]

    def _states(self) -> list[str]:
        if not self.state_bytes:
            return []
        state, staged = (f"{size / 1e6:.1f} MB" for size in (self.state_bytes, self.staged_bytes))
        return [
            f"states: {state} a request and for each of {self.num_checkpoints} kept prefixes; {staged} for each of"
            f" {self.staged_tokens} tokens of a step's blocks"
        ]


_HOW = {1: "", 2: " (sharing layers: flashdraft launch vllm --tp 2)"}


def plan_memory(
    target: str,
    draft: str | None,
    dtype: str,
    engine: EngineConfig,
    block_size: int | None,
    keep_codes: bool = False,
    outline: TargetModel | None = None,
) -> MemoryPlan:
    """The plan of a pair as :func:`load_target` and :func:`load_drafter` take its names.

    ``outline``: the target's, if there is one; without codes it is taken, and has ``dtype`` from now on. Raises
    CheckpointError for configs that are not there or do not go together.
    """
    if outline is None or keep_codes:
        model = outline_target(target, dtype, keep_codes)
    else:
        model = outline.to(check_dtype(dtype))
    drafter: DrafterNetwork | None = None
    if draft is not None:
        drafter = outline_draft(draft, target, model, dtype)
        if isinstance(drafter, DFlashModel) and drafts_among_all(draft, torch.device("cuda")):
            drafter.config = drafter.config.among_all()
    return plan_networks(model, drafter, engine, block_size)


def plan_networks(
    model: TargetModel, drafter: DrafterNetwork | None, engine: EngineConfig, block_size: int | None
) -> MemoryPlan:
    """The plan of networks, which may lie on the meta device. ``block_size`` None: the drafter's largest."""
    if drafter is None:
        block_size = 1
    elif block_size is None:
        block_size = drafter.config.block_size
    kv_bytes, state_bytes = _cache_bytes(model)
    engine = engine.on("cuda", block_size)
    running = engine.max_running
    windowed = [shape for shape in model.kv_shapes() if shape.window is not None]
    draft_shapes = [] if drafter is None else drafter.kv_shapes()
    draft_windowed = [shape for shape in draft_shapes if shape.window is not None]
    windows = [shape.window for shape in (*windowed, *draft_windowed)]
    room = WindowRoom.of(windows, running, engine.most_step_tokens, engine.page_size)
    window_bytes = _kv_bytes(windowed, model.head_weight())
    return MemoryPlan(
        max_running=running,
        block_size=block_size,
        weight_bytes=_bytes_of(model),
        draft_weight_bytes=0 if drafter is None else _bytes_of(drafter) + _codebook_bytes(model, drafter),
        kv_bytes=kv_bytes,
        draft_kv_bytes=0 if drafter is None else _kv_bytes(draft_shapes, drafter.fc.weight),
        state_bytes=state_bytes,
        staged_bytes=staged_bytes(model),
        num_checkpoints=engine.num_slots - running if state_bytes else 0,
        activation_bytes=max(
            _activation_bytes(model, running * block_size, engine.prompt_tokens),
            0 if drafter is None else _draft_head_bytes(model, drafter, running, block_size),
        ),
        chunk_bytes=_chunk_bytes(model),
        kv_heads=model.config.num_key_value_heads,
        page_size=engine.page_size,
        step_tokens=engine.step_tokens,
        layer_bytes=max(_kv_bytes([shape], model.head_weight()) for shape in model.kv_shapes()),
        window_bytes=window_bytes,
        draft_window_bytes=0 if drafter is None else _kv_bytes(draft_windowed, drafter.fc.weight),
        gpu_window_bytes=0 if type(model).forward in _READ_IN_PLACE else window_bytes,
        window_tokens=room.num_pages * engine.page_size if room else 0,
        staged_tokens=_staged_tokens(drafter, engine),
        beside_bytes=_WORKSPACE_BYTES
        + _BEHIND_BYTES * (_num_large(model) + (0 if drafter is None else _num_large(drafter)))
        + _step_bytes(model, drafter, running, block_size),
    )


def _bytes_of(network: nn.Module) -> int:
    # A set, so that a tied head counts once.
    floats = {id(t): t for t in network.state_dict(keep_vars=True).values()}.values()
    return sum(part.nbytes for part in (*floats, *_in_codes(network)))


def _codebook_bytes(model: TargetModel, drafter: DrafterNetwork) -> int:
    """Of codebooks that are made of the target's head once: models/dflash2.CandidateSelector.freeze."""
    selector = drafter.candidate_selector if isinstance(drafter, DFlashModel) else None
    if selector is None or not selector.projects_head:
        return 0
    weight = selector.hidden_projection.weight
    num_bytes: int = 2 * model.config.vocab_size * len(weight) * weight.element_size()
    return num_bytes


def _num_large(network: nn.Module) -> int:
    parts = [part for weight in _in_codes(network) for part in (weight.codes, weight.scales, weight.zeros)]
    return sum(part is not None and part.nbytes > 2**20 for part in (*network.parameters(), *parts))


def _in_codes(network: nn.Module) -> list[QuantizedWeight]:
    held = (value for module in network.modules() for value in vars(module).values())
    return [value for value in held if isinstance(value, QuantizedWeight)]


def _kv_bytes(shapes: Sequence[KVShape], like: Tensor) -> int:
    """Bytes a token of layers that keep ``shapes``, in the type of ``like``."""
    return sum(shape.size for shape in shapes) * like.element_size()


def _cache_bytes(model: TargetModel) -> tuple[int, int]:
    cache = model.new_cache(1, 1)
    states = cache.states.values() if isinstance(cache, HybridCache) else ()
    return _kv_bytes(model.kv_shapes(), model.head_weight()), sum(
        state.recurrent.nbytes + state.conv.nbytes for state in states
    )


def _staged_tokens(drafter: DrafterNetwork | None, engine: EngineConfig) -> int:
    """See :func:`flashdraft.backends.base.recorded_tokens`."""
    block_size = 1 if drafter is None else drafter.config.block_size
    return recorded_tokens(
        engine.max_running, block_size, engine.step_tokens, isinstance(drafter, DFlashModel)
    )


def staged_bytes(model: TargetModel) -> int:
    """Of one token, what a step on a GPU keeps of all gated delta layers (cuda/states.py).

    Its inputs [qkv | z | b | a], q, k and v behind the convolution, and in float32 three numbers of each key head and
    two of each head.
    """
    layers = [module for module in model.modules() if isinstance(module, GatedDeltaNet)]
    inputs = sum(2 * one.conv_shape[1] + one.sizes[2] + 2 * one.heads for one in layers)
    scalars = sum(3 * one.key_heads + 2 * one.heads for one in layers)
    return int(inputs * model.head_weight().element_size() + 4 * scalars)


def _step_bytes(model: TargetModel, drafter: DrafterNetwork | None, running: int, block_size: int) -> int:
    """What recorded steps return (cuda/target.CudaTarget.step), and recorded contexts take (cuda/drafter.py).

    Final hidden states and features of their tokens; features. A recording for each power of two of rows and of width,
    or of tokens: all but twice the largest, each way.
    """
    num_tokens = (2 * power_of_two(running) - 1) * (2 * power_of_two(block_size) - 1)
    features = 0 if drafter is None else int(drafter.fc.weight.shape[1])
    taken = (2 * MOST_STORED_TOKENS - 1) * features
    returned = _KEY_BOUNDS * num_tokens * (model.config.hidden_size + features)
    return int((taken + returned) * model.head_weight().element_size())


def _activation_bytes(model: TargetModel, num_slots: int, prompt_tokens: int) -> int:
    config, size = model.config, torch.empty(0, dtype=model.dtype).element_size()
    width = max(getattr(config, "intermediate_size", 0), getattr(config, "moe_intermediate_size", 0))
    logits = num_slots * config.vocab_size * (4 + size)
    # A prompt's product makes floats of weights in codes, some outputs at a time; two matrices may lie in one piece.
    maps = [module.weight.shape for module in model.modules() if isinstance(module, QuantizedLinear)]
    floats = size * max((rows_at_once(2 * outputs, inputs) * inputs for outputs, inputs in maps), default=0)
    each = size * (3 * width + 4 * config.hidden_size)
    return int(max(logits + num_slots * each, prompt_tokens * each) + floats)


def _draft_head_bytes(model: TargetModel, drafter: DrafterNetwork, running: int, block_size: int) -> int:
    """Float32 logits of what is drafted at once, and their exponentials: see spec_decode/tree.likeliest.

    Of steps of sampled drafts and trees, which are the largest: rounds whose kernels find the likeliest hold no floats.
    """
    num_slots = running * (block_size - 1 if isinstance(drafter, DFlashModel) else 1)
    return num_slots * int(drafter.draft_vocab_size or model.config.vocab_size) * (4 + 4)


def _chunk_bytes(model: TargetModel) -> int:
    """Of the recordings of cuda/recorded_chunk.py and cuda/prefill_delta.py."""
    config, size, most = model.config, model.head_weight().element_size(), CHUNK_LENGTHS[-1]
    # A layer's output twice, and what attention is asked, finds and is gated by; no logits.
    held = most * (2 * config.hidden_size + 3 * config.num_attention_heads * config.head_dim)
    running = _activation_bytes(model, 0, most)
    if isinstance(model.new_cache(1, 1), HybridCache):
        outputs = config.linear_num_value_heads * config.linear_value_head_dim
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        inputs = 2 * (keys + outputs + config.linear_num_value_heads)
        held += most * (inputs + 2 * outputs) + MOST_DELTA_TOKENS * (inputs + outputs)
        # Convolved, taken apart, unit-long, their chunks' factors and states: an estimate.
        running += MOST_DELTA_TOKENS * 5 * inputs * size
    return int(held * size + running)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / _GB:.2f} GB"
