"""A target and a drafter as folders on disk: tiny, random, with a tokenizer and a chat template."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from toys import toy_dflash, toy_hybrid, toy_target

END = "<|im_end|>"
SPECIAL_TOKENS = ("<|im_start|>", END, "<mask>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The shape of Qwen3.5's: tools in front, thoughts opened or closed at the end of the prompt.
TOOLS_TEMPLATE = (Path(__file__).parent.parent / "examples" / "tools.jinja").read_text()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_tiny_pair(
    folder: Path, block_size: int = 8, tokenizer: Any = None, max_len: int = 2048, **shape: object
) -> tuple[str, str]:
    """Write ``folder``/target and ``folder``/drafter; their paths. ``tokenizer``: None: one token a byte.

    ``shape``: what of the target's config is not toy_target's.
    """
    tokenizer = tokenizer or byte_tokenizer()
    target = toy_target(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=max_len,
        **shape,
    )
    drafter = toy_dflash(target, block_size=block_size)
    config = target.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    _save(target, config, folder / "target")
    _save(drafter, drafter.config.to_dict(), folder / "drafter")
    tokenizer.save_pretrained(folder / "target")
    return str(folder / "target"), str(folder / "drafter")


def save_tiny_hybrid(folder: Path) -> str:
    """Write a Qwen3.5 target into ``folder``; its path."""
    tokenizer = byte_tokenizer()
    target = toy_hybrid(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=2048,
        num_hidden_layers=6,
    )
    _save(target, target.config.to_dict(), folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _save(model: nn.Module, config: dict[str, object], folder: Path) -> None:
    folder.mkdir(parents=True)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
