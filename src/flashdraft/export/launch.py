"""What starting another engine needs to know of the pair, read from its configs alone."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flashdraft.checkpoint.embedded import EMBEDDED, embedded_drafter
from flashdraft.checkpoint.hf_config import parse_config
from flashdraft.checkpoint.hub import locate
from flashdraft.checkpoint.speculators import MARK
from flashdraft.checkpoint.untrusted import check_sizes, read_object
from flashdraft.checkpoint.zlab import read_drafter_config
from flashdraft.errors import CheckpointError, IncompatibleDrafterError, UsageError
from flashdraft.export.config import LaunchConfig
from flashdraft.export.engine_facts import EngineFacts, engine_facts
from flashdraft.models.dflash_config import DFlashConfig

# The class of a config that names none, as a language model's own does.
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
}
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


# Measured by others, tokens a second of all requests (SGLang on B200s, 2026).
_PUBLISHED = (
    "a 27B made 9,500 tokens a second on one B200, 22,300 on eight with --tp 8, 74,800 as eight replicas"
)


@dataclass(frozen=True)
class Pair:
    """A target and its drafter as another engine sees them."""

    target: str
    draft: str
    target_config: Any  # of its language model
    drafter: DFlashConfig | None  # None: of a kind that is not read here
    raw: dict[str, Any]  # the drafter's config.json as it stands
    raw_target: dict[str, Any] = field(default_factory=dict)  # the target's

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
        return self.drafter is not None and len(set(self.drafter.layer_types or ())) > 1

    @property
    def architecture(self) -> str:
        """What the target's config calls its class."""
        kind = str(self.raw_target.get("model_type"))
        return str((self.raw_target.get("architectures") or [_CLASSES.get(kind, kind)])[0])

    @property
    def is_domino(self) -> bool:
        """Whether it is a Domino drafter, whose class has DFlash's name."""
        inner = self.raw.get("dflash_config") or {}
        return "domino" in str(inner.get("projector_type", self.raw.get("projector_type"))).lower()

    @property
    def method(self) -> str:
        """The drafter's method: dflash (DFlash 2, LiLiCorr and xPress are served as it), dspark or eagle3."""
        told = f"{self.raw.get(MARK, '')} {' '.join(map(str, self.raw.get('architectures') or ()))}".lower()
        return next((name for name in ("dspark", "eagle3") if name in told), "dflash")

    def check_engine(self, engine: str) -> EngineFacts:
        """Raise UsageError for a target or drafter that the engine's own lists do not have; else its facts."""
        facts = engine_facts(engine)
        facts.check_target(self.architecture, self.raw_target)
        names = [str(name) for name in self.raw.get("architectures") or ()]
        is_listed = self.is_speculators or bool(facts.drafters & set(names))
        if engine == "sglang" and self.method == "eagle3":
            is_listed = True  # of the classes of any model, which it does not list
        if not is_listed:
            raise UsageError(
                f"{facts.label} serves no drafter of architecture {', '.join(names) or 'unknown'}"
            )
        return facts

    def notes(self, config: LaunchConfig) -> list[str]:
        """What to know of this pair, whoever serves it."""
        told = []
        if self.drafter is None:
            told.append(
                "flashdraft does not read this kind of drafter: whether it suits the target is the engine's to say"
            )
        if config.tp > 1 and config.replicas == 1 and config.nodes == 1 and config.pp == 1:
            told.append(
                f"where the pair fits one device, replicas serve more requests: --replicas {config.tp} in place of --tp"
                f" {config.tp}; {_PUBLISHED}"
            )
        return told

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
        told = (self.raw.get("dflash_config") or {}).get("block_size", self.raw.get("block_size"))
        largest = self.drafter.block_size if self.drafter else told
        wanted = largest if config.block_size is None else config.block_size
        if not isinstance(wanted, int):
            raise UsageError(
                f"the drafter's config.json says no block size; name one: --block-size, found {told!r}"
            )
        if wanted < 2 or (isinstance(largest, int) and wanted > largest):
            raise UsageError(f"block_size is {wanted}; expected 2 to {largest or 'many'}, the drafter's own")
        return wanted

    def check_dtype(self, config: LaunchConfig, more: Sequence[str]) -> None:
        """Raise UsageError where the engine would compute a DFlash 2 drafter in float16, by ``more``'s flags too.

        Its activations leave that type's range, and nothing that it drafts is accepted (vllm #55250, z-lab/dflash
        #160).
        """
        *_, dtype = config.dtype, *_values("--dtype", more)
        if dtype == "auto":
            text = self.raw_target.get("text_config") or {}
            told = (raw.get(key) for raw in (self.raw_target, text) for key in ("dtype", "torch_dtype"))
            dtype = next((str(one) for one in told if one), dtype)
        is_dflash2 = (
            self.drafter.is_dflash2 if self.drafter else "DFlash2" in str(self.raw.get("architectures"))
        )
        if is_dflash2 and dtype in ("float16", "half"):
            raise UsageError(
                f"dtype is {dtype}, which the engine takes for the drafter too; expected bfloat16: activations of"
                " DFlash 2 drafters leave float16's range, and none of their drafts is accepted then"
            )

    def check_heads(self, tp: int) -> None:
        """Raise UsageError where the target's attention heads do not spread evenly over ``tp`` devices."""
        if (heads := getattr(self.target_config, "num_attention_heads", tp)) % tp:
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
    place = locate(target, weights=False)
    raw_target = read_object(place / "config.json")
    check_sizes(raw_target, str(place / "config.json"))
    folder = embedded_drafter() if draft == EMBEDDED else locate(draft, weights=False)
    if folder.is_file():
        raise UsageError(
            f"{draft} is a GGUF file; expected a drafter in a folder or a hub name: write one with flashdraft convert"
            f" --draft {draft} --model {target} --to z-lab --out FOLDER"
        )
    raw = read_object(folder / "config.json")
    if MARK in raw_target or "dflash_config" in raw_target:
        raise UsageError(f"{target} holds a drafter; expected a target model: give it as --draft instead")
    target_config, drafter = _target_config(place, raw_target), None
    try:
        drafter = read_drafter_config(folder, target_config)
    except IncompatibleDrafterError:
        raise
    except CheckpointError:
        # Of a kind that others serve and flashdraft does not: their lists decide.
        if not raw.get("architectures") or "MTPDraftModel" in raw["architectures"]:
            raise
    name = str(folder) if draft == EMBEDDED else draft
    if drafter is not None and drafter.borrows_head:
        raise UsageError(
            f"drafter {draft} borrows {drafter.draft_vocab_size} rows of its target's head, which other engines cannot:"
            f" write it anew with flashdraft convert --draft {draft} --to z-lab --out FOLDER, for all tokens, or with"
            " --model TARGET too for vLLM, which takes a copy of the rows"
        )
    return Pair(target, name, target_config, drafter, raw, raw_target)


def _target_config(folder: Path, raw: dict[str, Any]) -> Any:
    """The language model's config: as transformers completes it, or as it stands where that does not know it."""
    try:
        return parse_config(folder).get_text_config()
    except CheckpointError:
        return SimpleNamespace(**(raw | (raw.get("text_config") or {})))


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


def _values(flag: str, argv: Sequence[str]) -> list[str]:
    """What a command line gives ``flag``, as the word behind it or behind ``=``."""
    behind = [after for word, after in pairwise(argv) if word == flag]
    return behind + [word.partition("=")[2] for word in argv if word.startswith(f"{flag}=")]


def flags(**values: object) -> list[str]:
    """``max_model_len=5`` -> ``--max-model-len 5``; None is left out."""
    told = [(name, value) for name, value in values.items() if value is not None]
    return [word for name, value in told for word in ("--" + name.replace("_", "-"), str(value))]
