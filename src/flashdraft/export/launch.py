"""What starting another engine needs to know of the pair, read from its configs alone."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashdraft.checkpoint.embedded import EMBEDDED, embedded_drafter
from flashdraft.checkpoint.hf_config import read_config
from flashdraft.checkpoint.hub import locate
from flashdraft.checkpoint.speculators import MARK
from flashdraft.checkpoint.untrusted import read_object
from flashdraft.checkpoint.zlab import read_drafter_config
from flashdraft.errors import UsageError
from flashdraft.export.config import LaunchConfig
from flashdraft.models.dflash_config import DFlashConfig

_CODER, _QWEN3 = {"vllm": "qwen3_coder", "sglang": "qwen3_coder"}, {"vllm": "hermes", "sglang": "qwen25"}
# model_type -> what reads thoughts, and tool calls by engine: as the models' own cards start these engines.
_PARSERS: Mapping[str, tuple[str | None, Mapping[str, str]]] = {
    "qwen3_5_text": ("qwen3", _CODER),
    "qwen3_5_moe_text": ("qwen3", _CODER),
    "qwen3": ("qwen3", _QWEN3),
    "qwen3_moe": ("qwen3", _QWEN3),
    "qwen3_next": ("qwen3", _QWEN3),
    "llama": (None, {"vllm": "llama3_json", "sglang": "llama3"}),
}


@dataclass(frozen=True)
class Pair:
    """A target and its drafter as another engine sees them."""

    target: str
    draft: str
    target_config: Any  # of its language model
    drafter: DFlashConfig
    raw: dict[str, Any]  # the drafter's config.json as it stands

    @property
    def is_speculators(self) -> bool:
        """Whether the drafter's config is in speculators' format."""
        return MARK in self.raw

    @property
    def is_hybrid(self) -> bool:
        """Whether some of the target's layers carry a state in place of keys and values."""
        return "linear_attention" in (getattr(self.target_config, "layer_types", None) or ())

    @property
    def is_mixed(self) -> bool:
        """Whether the drafter has sliding layers beside full ones."""
        return len(set(self.drafter.layer_types or ())) > 1

    def parsers(self, engine: str) -> tuple[str | None, str]:
        """The engine's names for what reads this family's thoughts and tool calls. Raises UsageError for other ones."""
        kind = self.target_config.model_type
        if kind not in _PARSERS:
            raise UsageError(
                f"no parsers are known for {kind} targets; leave --parsers out and name them behind --, for example"
                " -- --reasoning-parser NAME"
            )
        thoughts, calls = _PARSERS[kind]
        return thoughts, calls[engine]

    def block_size(self, config: LaunchConfig) -> int:
        """The block size to run. Raises UsageError for one that the drafter was not trained for."""
        largest = self.drafter.block_size
        wanted = largest if config.block_size is None else config.block_size
        if not 2 <= wanted <= largest:
            raise UsageError(f"block_size is {wanted}; expected 2 to {largest}, the drafter's own")
        return wanted

    def check_heads(self, tp: int) -> None:
        """Raise UsageError where the target's attention heads do not spread evenly over ``tp`` devices."""
        if (heads := self.target_config.num_attention_heads) % tp:
            raise UsageError(f"tp is {tp}; expected a divisor of the target's {heads} attention heads")


def read_pair(target: str, draft: str) -> Pair:
    """The pair's configs; no weights are read or fetched.

    Raises UsageError for a target or drafter that other engines cannot read, CheckpointError for a config that is
    missing or damaged, IncompatibleDrafterError for a drafter made for another target.
    """
    if target == EMBEDDED or Path(target).expanduser().is_file():
        raise UsageError(
            f"{target} is a GGUF file; expected a Hugging Face folder or a hub name: write one with"
            f" flashdraft convert --model {target} --to hf --out FOLDER"
        )
    target_config = read_config(locate(target, weights=False)).get_text_config()
    folder = embedded_drafter() if draft == EMBEDDED else locate(draft, weights=False)
    drafter = read_drafter_config(folder, target_config)
    name = str(folder) if draft == EMBEDDED else draft
    if drafter.borrows_head:
        raise UsageError(
            f"drafter {draft} borrows {drafter.draft_vocab_size} rows of its target's head, which other engines cannot:"
            f" write it anew with flashdraft convert --draft {draft} --to z-lab --out FOLDER, for all tokens, or with"
            " --model TARGET too for vLLM, which takes a copy of the rows"
        )
    return Pair(target, name, target_config, drafter, read_object(folder / "config.json"))


@dataclass(frozen=True)
class Command:
    """A command line of another engine. ``notes`` are what a person should know before starting it."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_text(self) -> str:
        """What a shell takes: notes as comments, then one option a line."""
        lines = [shlex.join([f"{name}={value}"]) for name, value in sorted(self.env.items())]
        start = next((i for i, word in enumerate(self.argv) if word.startswith("--")), len(self.argv))
        lines.append(shlex.join(self.argv[:start]))
        for word in self.argv[start:]:
            if word.startswith("--"):
                lines.append(word)
            else:
                lines[-1] += f" {shlex.quote(word)}"
        return "".join(f"# {note}\n" for note in self.notes) + " \\\n  ".join(lines)


def flags(**values: object) -> list[str]:
    """``max_model_len=5`` -> ``--max-model-len 5``; None is left out."""
    told = [(name, value) for name, value in values.items() if value is not None]
    return [word for name, value in told for word in ("--" + name.replace("_", "-"), str(value))]
