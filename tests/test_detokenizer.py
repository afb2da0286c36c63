"""Streamed text equals the text decoded at once, and never shows half a character."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from flashdraft.detokenizer import Detokenizer

TEXTS = [
    "plain words, and  two spaces",
    "naïve café",
    "数学很有趣。",
    "👩‍🚀 → 🎉🎉",
    "a\n\n\tb",
    " leading",
    "",
]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte (as GPT-2 and SmolLM2 without their merges)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Words that carry their leading space, and one token a byte for the rest (as Llama 2)."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdeghilnoprstuw,▁"]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


TOKENIZERS = {"byte-level": byte_level_tokenizer(), "sentencepiece": sentencepiece_tokenizer()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_add_up_to_the_text(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(token) for token in token_ids]
    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.flush() == ""


def test_an_emoji_appears_with_its_last_token() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode("a🎉b")]
    assert pieces == ["a", "", "", "", "🎉", "b"]


def test_special_tokens_are_left_out() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    stream = Detokenizer(tokenizer)
    ids = [*tokenizer.encode("a"), tokenizer.eos_token_id, *tokenizer.encode("b"), tokenizer.eos_token_id]
    assert [stream.push(token) for token in ids] == ["a", "", "b", ""]
    assert stream.flush() == ""


def test_a_cut_character_comes_out_at_the_end_and_the_next_answer_starts_afresh() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    stream = Detokenizer(tokenizer)
    assert [stream.push(token) for token in tokenizer.encode("é🎉")[:-1]] == ["", "é", "", "", ""]
    assert stream.flush() == "\ufffd"
    assert [stream.push(token) for token in tokenizer.encode("ok")] == ["o", "k"]


def test_broken_bytes_do_not_hold_the_rest_back() -> None:
    tokenizer = TOKENIZERS["byte-level"]
    stream = Detokenizer(tokenizer)
    broken = tokenizer.encode("🎉")[1:2] + tokenizer.encode("a")
    assert [stream.push(token) for token in broken] == ["", "\ufffda"]


@pytest.mark.parametrize("before", ["\n", "數", "\n數\n"])
@pytest.mark.parametrize("after", ["", " a"])
def test_what_was_whole_stays_before_a_broken_character(before: str, after: str) -> None:
    tokenizer = TOKENIZERS["sentencepiece"]
    whole = tokenizer.encode("a" + before, add_special_tokens=False)
    then = tokenizer.encode(after, add_special_tokens=False)
    stream = Detokenizer(tokenizer)
    token_ids = [*whole, tokenizer.convert_tokens_to_ids("<0xE6>"), *then]
    text = "".join(stream.push(token) for token in token_ids) + stream.flush()
    assert text == f"a{before}\ufffd{after}"
    assert tokenizer.decode(token_ids, skip_special_tokens=True) != text  # the tokenizer breaks the whole run
