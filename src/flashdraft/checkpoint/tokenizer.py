"""Tokenizers: a folder's as its tokenizer.json says, a GGUF's rebuilt from its fields. Knows no model."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.errors import CheckpointError

# Patterns that cut text into words, from the models' own tokenizer.json.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_NAMED = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # transformers' word -> GGUF's


def folder_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, a PreTrainedTokenizerFast with its chat template.

    tokenizer.json is taken as it stands, whatever class tokenizer_config.json names: transformers' classes
    (GPT2Tokenizer, ...) may build their own steps around its vocabulary. Raises CheckpointError when there
    is none.
    """
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; save it there with transformers (save_pretrained),"
            " or work on token ids (skip_tokenizer_init)"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} cannot be read ({reason}); fetch it again"
        ) from error


def gguf_tokenizer(file: GGUFFile) -> Any:
    """The byte-level BPE tokenizer of the fields, a PreTrainedTokenizerFast with its chat template.

    Raises CheckpointError for another kind of tokenizer, for a pre-tokenizer that is not known here and for
    fields that are missing or contradict each other.
    """
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in file.fields.items()}
    label = str(file.path)
    if (kind := fields.get("model")) != "gpt2":
        raise CheckpointError(
            f"{label} has a tokenizer of kind {kind!r}; expected 'gpt2' (byte-level BPE): give the model as a"
            " Hugging Face folder"
        )
    _check_fields(fields, label)
    tokens = fields["tokens"]
    backend = _byte_level_bpe(fields, label)
    named = {name: fields.get(f"{stored}_token_id") for name, stored in _NAMED.items()}
    tokenizer_class: Any = PreTrainedTokenizerFast
    return tokenizer_class(
        tokenizer_object=backend,
        add_bos_token=fields.get("add_bos_token", False),
        add_eos_token=fields.get("add_eos_token", False),
        chat_template=file.fields.get("tokenizer.chat_template"),
        model_max_length=file.fields.get(f"{file.fields.get('general.architecture')}.context_length"),
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": tokens[token_id] for name, token_id in named.items() if token_id is not None},
    )


def _check_fields(fields: dict[str, Any], label: str) -> None:
    for key in ("tokens", "merges", "token_type"):
        if key not in fields:
            raise CheckpointError(f"{label} lacks the field tokenizer.ggml.{key}; give the model as a folder")
    count = len(fields["tokens"])
    problems = []
    if len(set(fields["tokens"])) != count:
        problems.append("doubled tokens")
    if (found := len(fields["token_type"])) != count:
        problems.append(f"{found} token types (expected {count}, one a token)")
    if broken := [merge for merge in fields["merges"] if merge.count(" ") != 1]:
        problems.append(f"merges that are no pairs: {broken[:3]}")
    for key in (f"{stored}_token_id" for stored in _NAMED.values()):
        if not 0 <= (fields.get(key) or 0) < count:
            problems.append(f"{key} {fields[key]} (expected 0 to {count - 1})")
    if problems:
        raise CheckpointError(f"{label} has a damaged tokenizer: {'; '.join(problems)}: fetch it again")


def _byte_level_bpe(fields: dict[str, Any], label: str) -> Tokenizer:
    pre = fields.get("pre", "gpt-2")
    vocab = {token: token_id for token_id, token in enumerate(fields["tokens"])}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in fields["merges"])]
    try:
        # Llama 3 takes a word that is a token as that token, whatever the merges would make of it.
        backend = Tokenizer(models.BPE(vocab, pairs, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{label} has a damaged tokenizer: {error}: fetch it again") from error
    backend.pre_tokenizer = _pre_tokenizer(pre, label)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    for token, token_type in zip(fields["tokens"], fields["token_type"], strict=True):
        if token_type == _CONTROL:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_type == _USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])
    return backend


def _pre_tokenizer(pre: str, label: str) -> Any:
    """How text is cut before the merges, by llama.cpp's name. Raises CheckpointError for one not known."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    known: dict[str, list[Any]] = {
        "gpt-2": [gpt2],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"), to_bytes],
        "qwen2": [pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"), to_bytes],
    }
    if pre not in known:
        raise CheckpointError(
            f"{label} has pre-tokenizer {pre!r}; expected one of {', '.join(known)}: give the model as a"
            " Hugging Face folder"
        )
    return pre_tokenizers.Sequence(known[pre])
