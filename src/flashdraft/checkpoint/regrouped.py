"""Tensors that a checkpoint cuts otherwise than our networks: experts one by one, projections of Qwen3-Next joined."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flashdraft.checkpoint.kept_codes import Kept, stacked
from flashdraft.checkpoint.weights import WeightSource
from flashdraft.models.base import target_class

_LANGUAGE = re.compile(r"^(model\.language_model\.|language_model\.)")
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


class RegroupedWeights:
    """``source`` by our parameters' names (see :class:`flashdraft.checkpoint.weights.WeightSource`)."""

    def __init__(self, source: WeightSource, config: Any) -> None:
        self.label = source.label
        self._source = source
        self._made: dict[str, Callable[[], Tensor]] = {}
        self._kept: Mapping[str, Kept] = getattr(source, "kept", {})
        self.kept: dict[str, Kept] = {}  # what can stay in codes
        self.shapes = dict(source.shapes)
        if target_class(config.model_type).is_named_alone:
            self._name_language_model()
        self._stack_experts()
        if config.model_type == "qwen3_next":
            self._split_projections(config)
        self.kept |= {
            name: one for name, one in self._kept.items() if name in self.shapes and name not in self._made
        }

    def read(self, name: str) -> Tensor:
        """One tensor, put together where the checkpoint has its parts."""
        return self._made[name]() if name in self._made else self._source.read(name)

    def _name_language_model(self) -> None:
        """A language model beside its vision tower, named as without one.

        Published files say ``language_model.model.x``, those that transformers 5 saves ``model.language_model.x``.
        """
        for name in self._source.shapes:
            plain = _LANGUAGE.sub(lambda found: "" if found[1] == "language_model." else "model.", name)
            if plain != name:
                self.shapes[plain] = self.shapes.pop(name)
                self._made[plain] = partial(self._source.read, name)

    def _stack_experts(self) -> None:
        """``experts.3.up_proj`` and its like as ``experts.gate_up_proj`` and ``down_proj``, where all are there."""
        found: dict[str, set[tuple[int, str]]] = {}
        for name in self._source.shapes:
            if match := _EXPERT.fullmatch(name):
                found.setdefault(match[1], set()).add((int(match[2]), match[3]))
        for prefix, parts in found.items():
            num_experts = len(parts) // 3
            if parts != {(i, kind) for i in range(num_experts) for kind in ("gate", "up", "down")}:
                continue  # an expert is missing: the loader says which names it cannot place
            width, hidden_size = self.shapes[f"{prefix}.0.up_proj.weight"]
            for i, kind in parts:
                del self.shapes[f"{prefix}.{i}.{kind}_proj.weight"]
            self._add(prefix, "gate_up_proj", (num_experts, 2 * width, hidden_size), ("gate", "up"))
            self._add(prefix, "down_proj", (num_experts, hidden_size, width), ("down",))

    def _add(self, prefix: str, name: str, shape: tuple[int, ...], kinds: tuple[str, ...]) -> None:
        names = [[f"{prefix}.{i}.{kind}_proj.weight" for kind in kinds] for i in range(shape[0])]

        def read() -> Tensor:
            return torch.stack([torch.cat([self._source.read(part) for part in parts]) for parts in names])

        self.shapes[f"{prefix}.{name}"] = shape
        self._made[f"{prefix}.{name}"] = read
        in_turn = [part for parts in names for part in parts]
        if all(part in self._kept for part in in_turn):
            whole = stacked([self._kept[part] for part in in_turn])
            if whole is not None:
                self.kept[f"{prefix}.{name}"] = whole

    def _split_projections(self, config: Any) -> None:
        """Rows of each key head [query, key, values, gates] and [beta, alpha], apart as Qwen3.5 has them."""
        heads, ratio = (
            config.linear_num_key_heads,
            config.linear_num_value_heads // config.linear_num_key_heads,
        )
        key_dim, value_dim = config.linear_key_head_dim, ratio * config.linear_value_head_dim
        cuts = {
            "in_proj_qkvz": (
                [key_dim, key_dim, value_dim, value_dim],
                {"in_proj_qkv": [0, 1, 2], "in_proj_z": [3]},
            ),
            "in_proj_ba": ([ratio, ratio], {"in_proj_b": [0], "in_proj_a": [1]}),
        }
        for name in list(self._source.shapes):
            prefix, _, kind = name.removesuffix(".weight").rpartition(".")
            if kind not in cuts or self.shapes[name][0] != heads * sum(cuts[kind][0]):
                continue
            del self.shapes[name]
            sizes, wanted = cuts[kind]
            for part, places in wanted.items():
                self.shapes[f"{prefix}.{part}.weight"] = (
                    heads * sum(sizes[i] for i in places),
                    self._source.shapes[name][1],
                )
                self._made[f"{prefix}.{part}.weight"] = _rows_of(self._source, name, heads, sizes, places)


def _rows_of(
    source: WeightSource, name: str, heads: int, sizes: list[int], places: list[int]
) -> Callable[[], Tensor]:
    def picked() -> Tensor:
        parts = source.read(name).unflatten(0, (heads, -1)).split(sizes, dim=1)  # type: ignore[no-untyped-call]
        return torch.cat([parts[i].flatten(0, 1) for i in places])

    return picked
