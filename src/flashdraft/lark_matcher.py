"""Where one answer stands in a grammar of llguidance, and what that needs to know of a tokenizer."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from torch import Tensor


class LarkMatcher:
    """One answer in a grammar in llguidance's Lark. Raises UsageError for a grammar that is wrong or too large.

    A token that is refused leaves the matcher where it was. End tokens never reach llguidance.
    """

    def __init__(self, tokenizer: "LLTokenizer", lark: str, end_ids: frozenset[int]) -> None:
        from llguidance import LLMatcher

        self._start = LLMatcher(tokenizer, lark, log_level=0)
        if self._start.is_error():
            raise UsageError(self._start.get_error().partition("\n")[0][:300])
        self._matcher = self._start.deep_copy()
        self._end_ids = end_ids
        self._taken: list[int] = []
        self._num_ended = 0  # end tokens that were taken: 0 or 1
        self.failure = ""  # why nothing may follow, where llguidance gave up

    def copy(self) -> "LarkMatcher":
        """Another answer at the same place."""
        other = object.__new__(LarkMatcher)
        other._start, other._matcher = self._start, self._matcher.deep_copy()
        other._end_ids, other._num_ended = self._end_ids, self._num_ended
        other._taken, other.failure = list(self._taken), self.failure
        return other

    def accept_token(self, token: int) -> bool:
        """Take one token; False: it may not come next."""
        if self._num_ended:
            return False
        if token in self._end_ids:
            self._num_ended = int(self._matcher.is_accepting())
            return bool(self._num_ended)
        is_taken = self._matcher.try_consume_tokens([token]) == 1
        if is_taken:
            self._taken.append(token)
        self._restore()
        return is_taken

    def is_terminated(self) -> bool:
        """Whether the answer has ended."""
        return self._num_ended > 0

    def rollback(self, num_tokens: int) -> None:
        """Take tokens back."""
        num_tokens -= self._num_ended if num_tokens else 0
        self._num_ended = 0
        if num_tokens:
            self._matcher.rollback(num_tokens)
            del self._taken[len(self._taken) - num_tokens :]

    def fill_next_token_bitmask(self, allowed: "Tensor", row: int) -> None:
        """Set row ``row`` of ``allowed`` [rows, vocab_size / 32], int32, to the tokens that may come next."""
        bits = allowed[row]
        if self._matcher.is_stopped() and not self._matcher.is_error():
            bits.zero_()  # llguidance would leave its own end token alone, which may be another than ours
        else:
            self._matcher.unsafe_compute_mask_ptr(bits.data_ptr(), bits.nbytes)
            if self._matcher.is_error():
                self.failure = self._matcher.get_error().partition("\n")[0][:300]
                bits.zero_()
                self._restore()
                return
        ends = self._matcher.is_accepting()
        for token in self._end_ids:
            bit = 1 << token % 32
            word = int(bits[token // 32]) & 0xFFFFFFFF
            word = word | bit if ends else word & ~bit
            bits[token // 32] = word - (1 << 32) if word >> 31 else word

    def _restore(self) -> None:
        """Where llguidance has given up it takes nothing more, not even back: begin again, up to the same place."""
        if self._matcher.is_error():
            self._matcher = self._start.deep_copy()
            self._matcher.try_consume_tokens(self._taken)


def lark_tokenizer(tokenizer: Any, vocab_size: int, end_ids: Sequence[int]) -> "LLTokenizer":
    """``tokenizer`` for llguidance: the bytes of each token, none of special ones and of those past the end."""
    from llguidance import LLTokenizer
    from llguidance._tokenizer import TokenizerWrapper

    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special |= set(end_ids)
    texts = [
        (token, text)
        for text, token in tokenizer.get_vocab().items()
        if token < vocab_size and token not in special
    ]
    tokens = [b""] * vocab_size
    added = {token: one.content for token, one in tokenizer.added_tokens_decoder.items()}
    for token, data in _token_bytes(tokenizer, texts, added):
        tokens[token] = data
    for token in range(vocab_size):
        # A byte that no text has marks what can only be named, which no grammar here does.
        tokens[token] = tokens[token] or b"\xff[" + str(token).encode() + b"]"
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, tokens, end_ids[0])), eos_token=list(end_ids))


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Any, tokens: list[bytes], end_id: int) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        self.tokens, self.eos_token_id, self.bos_token_id = tokens, end_id, None
        self.special_token_ids: list[int] = []

    def __call__(self, text: str | bytes) -> list[int]:
        """The tokens of what a grammar forces, of which it then allows no other spelling."""
        if not isinstance(text, str):
            raise TypeError  # the rest of a character: llguidance takes the bytes one by one
        ids: list[int] = self._encode(text, add_special_tokens=False).ids
        return ids


def _token_bytes(
    tokenizer: Any, texts: Iterable[tuple[int, str]], added: dict[int, str]
) -> Iterable[tuple[int, bytes]]:
    """Each token's bytes: of byte-level letters, or of SentencePiece's pieces with their bytes for rare characters."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    decoder = json.dumps(state.get("decoder"))
    byte_of = _byte_of_letter() if '"ByteLevel"' in decoder else None
    for token, text in texts:
        if token in added:
            yield token, added[token].encode()
        elif byte_of is not None:
            yield token, bytes(byte_of[letter] for letter in text if letter in byte_of)
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            yield token, bytes([int(text[3:5], 16)])
        else:
            yield token, text.replace("\u2581", " ").encode()


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's letters for bytes (its ``bytes_to_unicode``, turned round)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(256 + i): byte for i, byte in enumerate(other)}
