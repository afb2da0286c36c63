"""A DFlash drafter's shape: what its config.json says, in z-lab's field names, and what each layer's block may see."""

from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from transformers import Qwen3Config

from flashdraft.errors import CheckpointError, UsageError
from flashdraft.ops.block_mask import BlockRule

DFLASH, DFLASH2 = "DFlashDraftModel", "DFlash2DraftModel"  # architectures
_OF_DFLASH2 = (
    "conv_kernel_size",
    "conv_group_size",
    "selector_rank",
    "selector_top_k",
    "selector_projects_head",
    "selector_anchor_sampled",
    "output_multiplier",
    "final_logit_softcapping",
    "input_embedding_scale",
)


def build_target_layer_ids(num_target_layers: int, num_features: int) -> tuple[int, ...]:
    """Feature layers, evenly spaced from the 2nd layer to the third-to-last (paper, section 3; 0-based).

    A target with fewer layers than that spreads them over all it has. Raises UsageError for more features than layers.
    """
    if not 1 <= num_features <= num_target_layers:
        raise UsageError(
            f"num_features is {num_features}; expected 1 to {num_target_layers}, the layers that the target has"
        )
    if num_features == 1:
        return (num_target_layers // 2,)
    first, last = (
        (1, num_target_layers - 3) if num_features <= num_target_layers - 3 else (0, num_target_layers - 1)
    )
    step = (last - first) / (num_features - 1)
    return tuple(round(first + i * step) for i in range(num_features))


@dataclass(frozen=True)
class DFlashConfig:
    """A drafter's shape, with the field names of z-lab's config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    block_size: int  # anchor included
    mask_token_id: int
    target_layer_ids: tuple[
        int, ...
    ]  # 0-based decoder layers of the target whose outputs condition the drafter
    num_target_layers: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    draft_vocab_size: int | None = None  # tokens that it drafts among; None: all that the target knows
    borrows_head: bool = False  # the rows of those tokens are the target's; False: it has a head of its own
    layer_types: tuple[str, ...] | None = None  # full_attention or sliding_attention; None: all full
    sliding_window: int | None = None  # tokens that a sliding layer sees
    is_causal: bool | None = None  # within the block; None: sliding layers are, full ones are not
    window_from_anchor: bool = False  # where the window ends, see BlockRule; speculators' trainer: True
    conv_kernel_size: int = 0  # taps of DFlash 2's convolutions, see models/dflash2.py; 0: it has none
    conv_group_size: int = 16  # channels that share what a convolution makes of its input
    selector_rank: int = 0  # of DFlash 2's candidate selector; 0: it has none
    selector_top_k: int = 16  # candidates of a slot
    selector_projects_head: bool = False  # its codebooks are projections of the target's head
    # Whether the anchor scores the first slot's candidates in drafts of sampled tokens too; the layers saw it already.
    selector_anchor_sampled: bool = True
    output_multiplier: float = 1.0  # of the head's outputs
    final_logit_softcapping: float = 0.0  # then capped to this by tanh; 0: not
    input_embedding_scale: float = 1.0  # of the block's embeddings
    rope_parameters: dict[str, Any] = field(
        default_factory=lambda: {"rope_type": "default", "rope_theta": 1e6}
    )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "DFlashConfig":
        """Read a z-lab / SpecForge ``config.json``; ``block_size`` may stand on top or in ``dflash_config``.

        Whether a block is causal is said by ``is_causal``, else by ``dflash_config.causal``, else by the layer type.
        Raises CheckpointError when a needed field is missing or the layer types cannot be.
        """
        inner = config.get("dflash_config") or {}
        merged = {**config, **inner, "rope_parameters": _plain_rope(config)}
        if merged.get("is_causal") is None:
            merged["is_causal"] = inner.get("causal")
        merged["layer_types"] = _layer_types(config)
        merged = {
            name: value for name, value in merged.items() if value is not None or name not in _OF_DFLASH2
        }
        if merged["layer_types"] is None:
            merged["sliding_window"] = None
        if merged.get("draft_vocab_size") == merged.get("vocab_size"):
            merged["draft_vocab_size"] = None
        wanted = {f.name for f in fields(cls)}
        needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        missing = sorted(needed - merged.keys())
        if missing:
            raise CheckpointError(
                f"drafter config.json lacks {', '.join(missing)}; expected a DFlashDraftModel config"
            )
        values = {name: merged[name] for name in wanted if name in merged}
        values["target_layer_ids"] = tuple(values["target_layer_ids"])
        return cls(**values)

    @cached_property
    def rules(self) -> list[BlockRule]:
        """What each layer's block may see."""
        kinds = self.layer_types or ("full_attention",) * self.num_hidden_layers
        return [self._rule(kind == "sliding_attention") for kind in kinds]

    def with_window(self, window: int) -> "DFlashConfig":
        """Every layer sees the ``window`` tokens before the anchor, and of its block what it saw before.

        Raises UsageError for a drafter with a window of its own, which it was trained for, and one below a block.
        """
        if self.layer_types is not None:
            raise UsageError(
                f"the drafter was trained with a window of {self.sliding_window} tokens: leave draft_window_size out"
            )
        if window < self.block_size:
            raise UsageError(
                f"draft_window_size is {window}; expected at least a block, {self.block_size} tokens"
            )
        kinds = ("sliding_attention",) * self.num_hidden_layers
        return replace(
            self,
            layer_types=kinds,
            sliding_window=window,
            is_causal=bool(self.is_causal),
            window_from_anchor=True,
        )

    def among_all(self) -> "DFlashConfig":
        """Drafting through the whole head, for a drafter that borrows rows of it."""
        assert self.borrows_head or self.draft_vocab_size is None, "it has no rows for all tokens"
        return replace(self, draft_vocab_size=None, borrows_head=False)

    def _rule(self, slides: bool) -> BlockRule:
        is_causal = slides if self.is_causal is None else self.is_causal
        return BlockRule(
            self.sliding_window if slides else None, is_causal, self.window_from_anchor and slides
        )

    @property
    def is_dflash2(self) -> bool:
        """Whether it has a part that plain DFlash has not."""
        return self.conv_kernel_size > 0 or self.selector_rank > 0

    @property
    def scales_logits(self) -> bool:
        """Whether logits are other than the head's outputs."""
        return self.output_multiplier != 1 or self.final_logit_softcapping > 0

    def to_dict(self) -> dict[str, Any]:
        """The z-lab ``config.json`` of this drafter."""
        plain = asdict(self)
        layer_types = plain.pop("layer_types")
        if plain["is_causal"] is None:
            del plain["is_causal"]
        borrows_head = plain.pop("borrows_head")
        if plain["draft_vocab_size"] is None:
            del plain["draft_vocab_size"]
        rope = plain.pop("rope_parameters")
        inner = {name: plain.pop(name) for name in ("mask_token_id", "target_layer_ids")}
        inner["target_layer_ids"] = list(inner["target_layer_ids"])
        if plain.pop("window_from_anchor"):
            inner["window_from_anchor"] = True
        if borrows_head:
            inner["borrows_head"] = True
        inner |= {name: value for name in _OF_DFLASH2 if (value := plain.pop(name)) != _DEFAULTS[name]}
        if self.is_dflash2:
            inner |= {name: getattr(self, name) for name in _OF_DFLASH2[:4]}
        scaling = None if rope.get("rope_type", "default") == "default" else rope
        return {
            "architectures": [architecture := DFLASH2 if self.is_dflash2 else DFLASH],
            "auto_map": {"AutoModel": f"dflash.{architecture}"},
            "model_type": "qwen3",
            **plain,
            "attention_dropout": 0.0,
            "dflash_config": inner,
            "hidden_act": "silu",
            "layer_types": list(layer_types or ["full_attention"] * self.num_hidden_layers),
            "rope_scaling": scaling,
            "rope_theta": rope["rope_theta"],
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_sliding_window": layer_types is not None,
        }


_DEFAULTS = {f.name: f.default for f in fields(DFlashConfig)}


def _plain_rope(config: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 writes rope_parameters; older checkpoints have rope_theta and rope_scaling.
    names = ("rope_parameters", "rope_theta", "rope_scaling", "max_position_embeddings")
    given = {name: config[name] for name in names if config.get(name) is not None}
    return one_dimensional(dict(Qwen3Config(**given).rope_parameters or {}))


def one_dimensional(rope_parameters: dict[str, Any]) -> dict[str, Any]:
    """Rope parameters for a drafter: whole heads, plain positions, whatever its target does with images or queries.

    Of a target that rotates layer types differently, those of its full layers: a drafter sees all of the context.
    """
    rope_parameters = rope_parameters.get("full_attention", rope_parameters)
    of_targets = ("mrope_section", "mrope_interleaved", "partial_rotary_factor", "llama_4_scaling_beta")
    plain = {name: value for name, value in rope_parameters.items() if name not in of_targets}
    if plain.get("rope_type") == "proportional":  # which is the default for whole heads
        plain["rope_type"] = "default"
    return plain


def _layer_types(config: dict[str, Any]) -> tuple[str, ...] | None:
    kinds, num_layers = tuple(config.get("layer_types") or ()), config.get("num_hidden_layers")
    if not kinds or set(kinds) == {"full_attention"}:
        return None
    window = config.get("sliding_window")
    is_usable = set(kinds) <= {"full_attention", "sliding_attention"} and len(kinds) == num_layers
    if not is_usable or not isinstance(window, int) or window < 1:
        raise CheckpointError(
            f"drafter layer_types {list(kinds)} with sliding_window {window} do not go together; expected"
            f" {num_layers} of full_attention or sliding_attention, and a window of 1 or more: fetch its config again"
        )
    return kinds
