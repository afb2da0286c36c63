"""Tokenizers against a plain byte-level BPE written here, and against transformers' reading of the files."""

import inspect
import itertools
import json
import random
import unicodedata

import pytest
import regex
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2_WORDS
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN3_5_WORDS

from flashdraft.checkpoint.embedded import embedded_target
from flashdraft.checkpoint.gguf import GGUFFile
from flashdraft.checkpoint.load import load_tokenizer
from flashdraft.checkpoint.tokenizer import gguf_tokenizer
from flashdraft.errors import CheckpointError

# The pattern of OpenAI's encoder.py.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = inspect.signature(TikTokenConverter).parameters["pattern"].default

TEXTS = [
    "Hello, world! I'll say it's don't we've I'M YOU'LL",
    "In 1789 there were 12,345.678 people; 3.14159 and 007",
    "a  12   b\n\n  c\t\td   \r\n\r\n e ",
    "Größe naïve façade Ωμέγα привет שלום مرحبا ३४५ ½ ①② x² ٣",
    "日本語のテキスト 中文字符 한국어 👩‍👩‍👧 🇫🇷 🤷🏽",
    "def f(x):\n    return x**2 + 1  # square\n\tif x>=10: pass\n",
    "https://example.org/a_b?c=1&d=%20 foo_bar fooBar __init__ ----====",
    "e\u0301 vs \u00e9, \u2126 vs \u03a9, zero\u200bwidth, no\u00a0break",
    "",
    " ",
    "\n",
]
CHATS = [
    [{"role": "user", "content": "What is 12 + 345?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi\nthere"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Où est la gare ?"},
    ],
]


def random_texts(count=150):
    letters = "aeinrst  .,'!?\n\t-_0123456789ABCéßø日本語한🙂½"
    draw = random.Random(0)
    return ["".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(count)]


class PlainBPE:
    """Byte-level BPE as in GPT-2: the neighbours of lowest rank are joined, until no pair has a rank."""

    def __init__(self, file, split, normalize=None, words_first=False):
        self.token_ids = {token: i for i, token in enumerate(file.fields["tokenizer.ggml.tokens"])}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(file.fields["tokenizer.ggml.merges"])}
        kinds = file.fields["tokenizer.ggml.token_type"]
        self.special = [token for token, kind in zip(self.token_ids, kinds, strict=True) if kind == 3]
        self.split, self.normalize, self.words_first = split, normalize, words_first
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        self.letters = {byte: chr(byte) for byte in shown} | {
            byte: chr(256 + i) for i, byte in enumerate(hidden)
        }

    def encode(self, text):
        parts = regex.split("(" + "|".join(map(regex.escape, self.special)) + ")", text)
        return [token_id for part in parts for token_id in self._encode_plain(part)]

    def _encode_plain(self, text):
        if text in self.special:
            return [self.token_ids[text]]
        text = unicodedata.normalize(self.normalize, text) if self.normalize else text
        return [self.token_ids[token] for word in self.split(text) for token in self._merge(word)]

    def _merge(self, word):
        tokens = [self.letters[byte] for byte in word.encode()]
        if self.words_first and "".join(tokens) in self.token_ids:
            return ["".join(tokens)]
        while len(tokens) > 1:
            ranks = [self.ranks.get(pair, len(self.ranks)) for pair in itertools.pairwise(tokens)]
            if min(ranks) == len(self.ranks):
                break
            at = ranks.index(min(ranks))
            tokens[at : at + 2] = [tokens[at] + tokens[at + 1]]
        return tokens


def smollm_split(text):
    return [word for part in regex.split(r"(\p{N})", text) for word in regex.findall(GPT2_WORDS, part)]


SPLITS = {
    "smollm": {"split": smollm_split},
    "gpt-2": {"split": regex.compile(GPT2_WORDS).findall},
    "llama-bpe": {"split": regex.compile(LLAMA3_WORDS).findall, "words_first": True},
    "qwen2": {"split": regex.compile(QWEN2_WORDS).findall, "normalize": "NFC"},
    "qwen35": {"split": regex.compile(QWEN3_5_WORDS).findall, "normalize": "NFC"},
}


@pytest.fixture(scope="module")
def embedded():
    return GGUFFile(embedded_target())


@pytest.fixture(scope="module")
def embedded_tokenizer(embedded):
    return gguf_tokenizer(embedded)


@pytest.fixture(scope="module")
def transformers_tokenizer():
    """transformers' own reading of the GGUF, with the pre-tokenizer that it gets wrong put right."""
    path = embedded_target()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return tokenizer


@pytest.mark.parametrize("pre", SPLITS)
def test_every_pre_tokenizer_equals_plain_bpe(embedded, pre):
    fields = {**embedded.fields, "tokenizer.ggml.pre": pre}
    file = GGUFFile(embedded.path)
    file.fields = fields
    tokenizer, reference = gguf_tokenizer(file), PlainBPE(file, **SPLITS[pre])
    for text in [*TEXTS, *random_texts(), "<|im_start|>user\nhi 42<|im_end|>\n<|endoftext|>"]:
        ids = tokenizer.encode(text)
        assert ids == reference.encode(text), text
        expected = unicodedata.normalize("NFC", text) if "normalize" in SPLITS[pre] else text
        assert tokenizer.decode(ids) == expected


def test_digits_are_split_one_by_one(embedded_tokenizer):
    tokens = embedded_tokenizer.convert_ids_to_tokens(embedded_tokenizer.encode("in 1984x56"))
    assert tokens == ["in", "Ġ", "1", "9", "8", "4", "x", "5", "6"]


def test_embedded_equals_transformers(embedded_tokenizer, transformers_tokenizer):
    assert embedded_tokenizer.get_vocab() == transformers_tokenizer.get_vocab()
    for text in [*TEXTS, *random_texts()]:
        assert embedded_tokenizer.encode(text) == transformers_tokenizer.encode(text), text
    for chat in CHATS:
        for prompt in (True, False):
            ours, theirs = (
                tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
                for tokenizer in (embedded_tokenizer, transformers_tokenizer)
            )
            assert ours == theirs
            assert ours.startswith("<|im_start|>system\n")
            ids = embedded_tokenizer.apply_chat_template(
                chat, add_generation_prompt=prompt, return_dict=False
            )
            assert embedded_tokenizer.decode(ids) == ours
            assert 2 in ids


def test_embedded_special_tokens(embedded_tokenizer):
    tokenizer = embedded_tokenizer
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (2, 1)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (2, 0)
    assert len(tokenizer) == 49152
    assert tokenizer.model_max_length == 8192
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.decode([1, 9690, 2, 3], skip_special_tokens=True) == "system"


def test_folder_equals_what_was_saved(embedded_tokenizer, tmp_path):
    embedded_tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (tmp_path / "chat_template.jinja").is_file()
    # As SmolLM2 is published: the class is not what the steps in tokenizer.json are.
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert not isinstance(tokenizer, GPT2Tokenizer)
    for text in TEXTS:
        assert tokenizer.encode(text) == embedded_tokenizer.encode(text)
    for chat in CHATS:
        assert tokenizer.apply_chat_template(chat, tokenize=False) == embedded_tokenizer.apply_chat_template(
            chat, tokenize=False
        )
    assert tokenizer.eos_token_id == 2


def test_added_bos_and_user_defined_tokens(embedded):
    file = GGUFFile(embedded.path)
    kinds = list(file.fields["tokenizer.ggml.token_type"])
    kinds[9] = 4  # <issue_comment>
    file.fields |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.token_type": kinds}
    tokenizer = gguf_tokenizer(file)
    plain = gguf_tokenizer(GGUFFile(embedded.path)).encode("Hi there")
    assert tokenizer.encode("Hi there") == [1, *plain]
    assert tokenizer.encode("Hi there", add_special_tokens=False) == plain
    assert tokenizer.decode([9, 2], skip_special_tokens=True) == "<issue_comment>"


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", ["the"]), ("gpt-2", ["th", "e"])])
def test_llama3_takes_whole_words_first(make_llama, write_gguf, pre, expected):
    """A word that is a token stays whole, though no merges lead to it."""
    tokens = [*"eht", "th", "the"]
    fields = {"pre": pre, "tokens": tokens, "token_type": [1] * 5, "merges": ["t h"]}
    fields |= {"bos_token_id": None, "eos_token_id": None, "padding_token_id": None}
    path = write_gguf(make_llama(), {f"tokenizer.ggml.{key}": value for key, value in fields.items()})
    tokenizer = load_tokenizer(path)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("the")) == expected


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"model": "t5"}, r"tokenizer of kind 't5'; expected 'gpt2'"),
        ({"pre": "tekken"}, r"pre-tokenizer 'tekken'; expected one of gpt-2, smollm, llama-bpe, qwen2"),
        ({"tokens": None}, r"lacks the field tokenizer\.ggml\.tokens"),
        ({"merges": None}, r"lacks the field tokenizer\.ggml\.merges"),
        ({"token_type": None}, r"lacks the field tokenizer\.ggml\.token_type"),
        ({"merges": ["th"]}, r"merges that are no pairs: \['th'\]"),
        ({"merges": ["t h e"]}, r"merges that are no pairs: \['t h e'\]"),
        ({"tokens": ["a"] * 41}, r"doubled tokens"),
        ({"merges": ["t q"]}, r"damaged tokenizer: .*tq"),
        ({"token_type": [1, 1]}, r"2 token types \(expected 41, one a token\)"),
        ({"eos_token_id": 99}, r"eos_token_id 99 \(expected 0 to 40\)"),
    ],
)
def test_gguf_without_a_usable_tokenizer(make_llama, write_gguf, fields, pattern):
    path = write_gguf(make_llama(), {f"tokenizer.ggml.{key}": value for key, value in fields.items()})
    with pytest.raises(CheckpointError, match=pattern):
        load_tokenizer(path)


def test_folder_without_tokenizer(folder):
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json; .*skip_tokenizer_init"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "BPE"}}'])
def test_folder_with_broken_tokenizer(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read \(.*\); fetch it again"):
        load_tokenizer(folder)


def test_folder_whose_added_ids_leave_a_gap(folder):
    mask = "<|mask|>"
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    backend.add_special_tokens([mask])
    file = json.loads(backend.to_str())
    file["added_tokens"][0]["id"] = 7  # a spare row of the embeddings; tokenizers counts on, to 2
    (folder / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(
        CheckpointError, match=r"'<\|mask\|>' the id 7, .* load it as 2, .* add it to model\.vocab"
    ):
        load_tokenizer(folder)
    file["model"]["vocab"][mask] = 7
    (folder / "tokenizer.json").write_text(json.dumps(file))
    assert load_tokenizer(folder).encode(f"a{mask}b") == [0, 7, 1]
