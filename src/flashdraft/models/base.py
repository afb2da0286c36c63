"""The seam between a target and everything that uses it: hidden states, features on request, embedding and head."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flashdraft.batch import ForwardBatch
from flashdraft.cache.kv_cache import KVCache, KVShape
from flashdraft.errors import CheckpointError
from flashdraft.ops.attention import CAUSAL, AttentionSpec, Mask, attention
from flashdraft.ops.greedy import greedy_tokens
from flashdraft.ops.sliding import masks_by_window

# model_type of config.json -> where its class is.
ARCHITECTURES = {
    "llama": ("flashdraft.models.llama", "LlamaModel"),
    "qwen3": ("flashdraft.models.qwen3", "Qwen3Model"),
    "qwen3_moe": ("flashdraft.models.qwen3", "Qwen3Model"),
    "qwen3_5": ("flashdraft.models.qwen3_5", "Qwen3_5Model"),
    "qwen3_5_text": ("flashdraft.models.qwen3_5", "Qwen3_5Model"),
    "qwen3_5_moe": ("flashdraft.models.qwen3_5", "Qwen3_5Model"),
    "qwen3_5_moe_text": ("flashdraft.models.qwen3_5", "Qwen3_5Model"),
    "gemma3": ("flashdraft.models.gemma3", "Gemma3Model"),
    "gemma3_text": ("flashdraft.models.gemma3", "Gemma3Model"),
    "gemma4": ("flashdraft.models.gemma4", "Gemma4Model"),
    "gemma4_text": ("flashdraft.models.gemma4", "Gemma4Model"),
    "gemma4_unified": ("flashdraft.models.gemma4", "Gemma4Model"),
    "gemma4_unified_text": ("flashdraft.models.gemma4", "Gemma4Model"),
    "mistral": ("flashdraft.models.mistral", "MistralModel"),
    "mistral3": ("flashdraft.models.mistral", "MistralModel"),
    "ministral3": ("flashdraft.models.mistral", "MistralModel"),
    "olmo2": ("flashdraft.models.olmo", "Olmo2Model"),
    "olmo3": ("flashdraft.models.olmo", "Olmo3Model"),
    "gpt_oss": ("flashdraft.models.gpt_oss", "GptOssModel"),
    "qwen3_next": ("flashdraft.models.qwen3_5", "Qwen3_5Model"),
}


# Among feature layers: the hidden states after the final norm, those that the head reads.
FINAL_HIDDEN = -1


class LayerSource(Protocol):
    """One layer's attention in one forward: where new keys and values go, and what its tokens see of them."""

    def attend(self, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        """Take new keys and values [rows, kv_heads, num_tokens, head_dim] and let ``q`` attend, as its spec says.

        ``q`` and what it finds: [rows, heads, num_tokens, head_dim]. A layer that shares an earlier one's keys and
        values (``AttentionSpec.shares``) brings None.
        """
        ...


class KVSource(Protocol):
    """What a forward attends to beyond its own tokens: a cache when serving, other things in training."""

    @property
    def layers(self) -> Sequence[Any]:
        """What is kept of each layer."""
        ...

    def open(self, batch: ForwardBatch, specs: Sequence[AttentionSpec]) -> Sequence[LayerSource]:
        """One source for each layer, for the tokens of ``batch``. ``specs``: the layers' own.

        A layer without attention (gated delta) has its state there.
        """
        ...


class _OwnLayer:
    def __init__(self, mask: Mask, spec: AttentionSpec, shared: "_OwnLayer | None") -> None:
        self.mask, self.spec, self.shared = mask, spec, shared
        self.taken: tuple[Tensor, Tensor] | None = None  # where another layer shares them

    def attend(self, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        if k is not None and v is not None:
            self.taken = k, v
        found = self.taken if self.shared is None else self.shared.taken
        assert found is not None, "a layer that shares nothing brings keys and values"
        return attention(q, *found, self.mask, self.spec)


class OwnTokens:
    """Whole sequences that see only themselves; nothing is kept. ``mask`` may keep packed documents apart."""

    layers = ()

    def __init__(self, mask: Mask = CAUSAL) -> None:
        self.mask = mask

    def open(self, batch: ForwardBatch, specs: Sequence[AttentionSpec]) -> list[LayerSource]:
        """See :class:`KVSource`."""
        num_tokens = batch.token_ids.shape[1]
        places = torch.arange(num_tokens, device=batch.token_ids.device).expand_as(batch.token_ids)
        masks = masks_by_window(self.mask, specs, places, num_tokens)
        sources: list[LayerSource] = []
        for spec in specs:
            shared = None if spec.shares is None else sources[spec.shares]
            assert shared is None or isinstance(shared, _OwnLayer)
            sources.append(_OwnLayer(masks[spec.window], spec, shared))
        return sources


@dataclass(frozen=True)
class TargetOutput:
    """What a target's forward gives."""

    hidden: Tensor  # [batch, num_tokens, hidden_size], after the final norm
    features: Tensor | None  # [batch, num_tokens, len(feature_layers) * hidden_size]

    @classmethod
    def of(
        cls, hidden: Tensor, features: Mapping[int, Tensor], feature_layers: Sequence[int]
    ) -> "TargetOutput":
        """Join the ``features`` of the wanted layers, by layer index, in the order of ``feature_layers``."""
        if not feature_layers:
            return cls(hidden, None)
        wanted = [hidden if i == FINAL_HIDDEN else features[i] for i in feature_layers]
        return cls(hidden, torch.cat(wanted, dim=-1))

    def at(self, places: Sequence[int]) -> "TargetOutput":
        """The same for the tokens at ``places`` alone."""
        kept = list(places)
        return TargetOutput(self.hidden[:, kept], None if self.features is None else self.features[:, kept])


class TargetModel(nn.Module):
    """A causal language model whose output a drafter must reproduce."""

    config: Any  # the transformers config of its language model
    specs: Sequence[AttentionSpec]  # of each layer
    skipped_tensors: tuple[str, ...] = ()  # parts of a checkpoint that it knowingly leaves out, by prefix
    is_named_alone = False  # beside a vision tower its parameters are named as without one

    @abstractmethod
    def forward(
        self, batch: ForwardBatch, cache: KVSource, feature_layers: Sequence[int] = ()
    ) -> TargetOutput:
        """Run the tokens of ``batch``; stage their keys and values in ``cache``.

        ``feature_layers`` are 0-based decoder layers whose outputs are wanted, concatenated in that order
        (DFlash paper, section 3); FINAL_HIDDEN stands for the output of the final norm.
        """

    @abstractmethod
    def embed(self, token_ids: Tensor) -> Tensor:
        """Input embeddings [..., hidden_size] of token ids [...]."""

    @abstractmethod
    def head_weight(self) -> Tensor:
        """The output head, [vocab_size, hidden_size]."""

    def kv_shapes(self) -> list[KVShape]:
        """What each of its layers that attend keeps of a token."""
        heads, head_dim = self.config.num_key_value_heads, self.config.head_dim
        return [KVShape(heads, head_dim, spec.window, spec.shares) for spec in self.specs]

    def new_cache(self, batch_size: int, max_len: int) -> KVCache:
        """An empty cache for ``batch_size`` sequences of at most ``max_len`` tokens."""
        return KVCache(self.kv_shapes(), batch_size, max_len, self.dtype, self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary, float32 [..., vocab_size], of final hidden states [..., hidden_size]."""
        # As one contiguous matrix: a slice of a batch takes a CPU path that was three times slower in bf16.
        rows = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        logits = nn.functional.linear(rows, self.head_weight()).float()
        return logits.view(*hidden.shape[:-1], logits.shape[-1])

    def argmax(self, hidden: Tensor) -> Tensor:
        """The likeliest tokens [...] after final hidden states [..., hidden_size]; of equal ones the first.

        -1 where logits are no numbers.
        """
        return greedy_tokens(self.logits(hidden))

    def greedy(
        self, batch: ForwardBatch, cache: KVSource, feature_layers: Sequence[int] = ()
    ) -> tuple[TargetOutput, Tensor | None]:
        """:meth:`forward`, and :meth:`argmax` of all its tokens [batch, num_tokens] where one call gives both.

        Of padding it means nothing.
        """
        return self.forward(batch, cache, feature_layers), None

    def threads(self) -> AbstractContextManager[None]:
        """To be entered around many forwards: sets PyTorch's threads as suits this model."""
        return nullcontext()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head_weight().device

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and activations."""
        return self.head_weight().dtype


def target_class(model_type: str) -> type[TargetModel]:
    """The class of targets of ``model_type``. Raises CheckpointError for one that is not supported."""
    if model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(
            f"model_type {model_type!r} is not supported as a target; expected one of: {known}"
        )
    module, name = ARCHITECTURES[model_type]
    found: type[TargetModel] = getattr(import_module(module), name)
    return found


def build_target(config: Any) -> TargetModel:
    """The network that ``config`` describes, with parameters named as in its transformers checkpoint.

    Raises CheckpointError for a model_type that is not supported.
    """
    network: Any = target_class(config.model_type)
    model: TargetModel = network(config)
    return model


def compile_layers(*models: nn.Module) -> None:
    """Compile the repeated layers, once for all of a model's: seconds instead of minutes for the whole graph."""
    torch._dynamo.config.cache_size_limit = 64
    for model in models:
        for module in model.modules():
            if type(module).__name__.endswith("Layer"):
                module.compile(dynamic=False)
