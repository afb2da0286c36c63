"""Tokenizers: a folder's as its tokenizer.json says, a GGUF's rebuilt from its fields. Knows no model."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.checkpoint.untrusted import check_folder
from flashdraft.errors import CheckpointError

# Patterns that cut text into words, from the models' own tokenizer.json.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35_WORDS = _QWEN2_WORDS.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)
_KINDS = {"gpt2": ("tokens", "merges", "token_type"), "llama": ("tokens", "scores", "token_type")}
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type
_NAMED = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # transformers' word -> GGUF's


# Special tokens that begin and part Mistral's tool calls, and harmony's messages: a decoded answer would have neither.
_CALL_MARKS = frozenset({"[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"})
_CHANNEL = "<|channel|>"
_HARMONY_MARKS = frozenset({_CHANNEL, "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"})


def with_call_marks(tokenizer: Any) -> Any:
    """``tokenizer``, whose decoded texts show where calls and messages begin, though special tokens are left out."""
    added = tokenizer.added_tokens_decoder.values()
    marks = _CALL_MARKS | (_HARMONY_MARKS if any(one.content == _CHANNEL for one in added) else set())
    found = [one for one in added if one.content in marks]
    if any(one.special for one in found):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        for one in state["added_tokens"]:
            one["special"] = one["special"] and one["content"] not in marks
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def folder_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, a PreTrainedTokenizerFast with its chat template.

    tokenizer.json is taken as it stands, whatever class tokenizer_config.json names: transformers' classes
    (GPT2Tokenizer, ...) may build their own steps around its vocabulary. Raises CheckpointError when there
    is none, and for added tokens that tokenizers would give other ids than the file does.
    """
    check_folder(folder)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json; save it there with transformers (save_pretrained),"
            " or work on token ids (skip_tokenizer_init)"
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare Exception for a file it cannot read
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} cannot be read ({reason}); fetch it again"
        ) from error
    _check_added_ids(tokenizer, folder / "tokenizer.json")
    return tokenizer


def _check_added_ids(tokenizer: Any, file: Path) -> None:
    """tokenizers counts added tokens on from the vocabulary, whatever their ids in the file, which may leave a gap."""
    for one in json.loads(file.read_text(encoding="utf-8")).get("added_tokens") or ():
        if (loaded := tokenizer.convert_tokens_to_ids(one["content"])) != one["id"]:
            raise CheckpointError(
                f"{file} gives {one['content']!r} the id {one['id']}, and tokenizers would load it as {loaded}, for the"
                " ids leave a gap; add it to model.vocab with its id too, or fetch the file again"
            )


def gguf_tokenizer(file: GGUFFile) -> Any:
    """The byte-level or SentencePiece BPE tokenizer of the fields, a PreTrainedTokenizerFast with its chat template.

    Raises CheckpointError for another kind of tokenizer, for a pre-tokenizer that is not known here and for
    fields that are missing or contradict each other.
    """
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in file.fields.items()}
    label = str(file.path)
    if (kind := fields.get("model")) not in _KINDS:
        raise CheckpointError(
            f"{label} has a tokenizer of kind {kind!r}; expected 'gpt2' (byte-level BPE) or 'llama' (SentencePiece):"
            " give the model as a Hugging Face folder"
        )
    _check_fields(fields, label, _KINDS[kind])
    tokens = fields["tokens"]
    backend = _byte_level_bpe(fields, label) if kind == "gpt2" else _sentencepiece_bpe(fields)
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


def _check_fields(fields: dict[str, Any], label: str, needed: tuple[str, ...]) -> None:
    for key in needed:
        if key not in fields:
            raise CheckpointError(f"{label} lacks the field tokenizer.ggml.{key}; give the model as a folder")
    count = len(fields["tokens"])
    problems = []
    if len(set(fields["tokens"])) != count:
        problems.append("doubled tokens")
    for key, what in (("token_type", "token types"), ("scores", "scores")):
        if key in needed and (found := len(fields[key])) != count:
            problems.append(f"{found} {what} (expected {count}, one a token)")
    if broken := [merge for merge in fields.get("merges", ()) if merge.count(" ") != 1]:
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
    if pre in ("qwen2", "qwen35"):
        backend.normalizer = normalizers.NFC()
    _add_whole_tokens(backend, fields)
    return backend


def _sentencepiece_bpe(fields: dict[str, Any]) -> Tokenizer:
    """Characters merged by the highest score of a token, as SentencePiece does; bytes where there is none."""
    tokens = fields["tokens"]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    ordinary = [i for i, kind in enumerate(fields["token_type"]) if kind == _NORMAL]
    pairs: list[tuple[float, int, int, str, str]] = []
    for token_id in ordinary:
        token = tokens[token_id]
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                pairs.append((-fields["scores"][token_id], vocab[left], vocab[right], left, right))
    unknown = fields.get("unknown_token_id")
    backend = Tokenizer(
        models.BPE(
            vocab,
            [(left, right) for *_, left, right in sorted(pairs)],
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[Any] = [normalizers.Replace(" ", _SPACE)]
    undo: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.get("add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(" "))
        undo.append(decoders.Strip(" ", 1, 0))
    backend.normalizer, backend.decoder = normalizers.Sequence(steps), decoders.Sequence(undo)
    _add_whole_tokens(backend, fields)
    return backend


def _add_whole_tokens(backend: Tokenizer, fields: dict[str, Any]) -> None:
    kinds = list(zip(fields["tokens"], fields["token_type"], strict=True))
    special = [AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == _CONTROL]
    backend.add_special_tokens(special)
    backend.add_tokens(
        [AddedToken(token, normalized=False) for token, kind in kinds if kind == _USER_DEFINED]
    )


def _pre_tokenizer(pre: str, label: str) -> Any:
    """How text is cut before the merges, by llama.cpp's name. Raises CheckpointError for one not known."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    known: dict[str, list[Any]] = {
        "gpt-2": [gpt2],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated"), to_bytes],
        "qwen2": [pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"), to_bytes],
        "qwen35": [pre_tokenizers.Split(Regex(_QWEN35_WORDS), "isolated"), to_bytes],
    }
    if pre not in known:
        raise CheckpointError(
            f"{label} has pre-tokenizer {pre!r}; expected one of {', '.join(known)}: give the model as a"
            " Hugging Face folder"
        )
    return pre_tokenizers.Sequence(known[pre])
