"""Structured output: a grammar that an answer must follow, and where one answer stands in it.

JSON schemas and tool calls are followed by llguidance, which says what it cannot follow; regular expressions, EBNF
and choices by xgrammar, whose EBNF is exact.

A token's place in the grammar is a function of the tokens before it, like a penalty: so masks go position by
position through a block, and tokens under a grammar are those of plain decoding at any block size.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import thread_time
from typing import TYPE_CHECKING, Any, Literal, Protocol

from flashdraft.errors import UsageError
from flashdraft.json_schema import looks_around, rewritten
from flashdraft.lark_matcher import LarkMatcher, lark_tokenizer

if TYPE_CHECKING:  # this is also read where nothing but a Grammar is wanted, as for --help
    from torch import Tensor
    from xgrammar import CompiledGrammar

MAX_TEXT_BYTES = 64 << 10
MAX_COMPILED_BYTES = 32 << 20
MAX_MASK_S = 0.5  # of one block; a grammar that can be read in very many ways gets slower with every token
_MAX_SPACES = 24  # in a row between the parts of a JSON text: a small model might never write anything else
_NUM_KEPT = 32  # compiled grammars of one tokenizer
_NUM_TRIED = 16  # tokens of a random walk that a new grammar has to stand
_NOISE = re.compile(r"\[[\d:]+\] \S+:\d+: |Check failed: \(.*?\) is false: ")

_INSTALL = "pip install xgrammar llguidance"  # modules they need have other names than their packages

GrammarKind = Literal["json_schema", "regex", "ebnf", "choice", "lark"]


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like.

    ``text``: the JSON schema, the regular expression, the EBNF grammar with its rule ``root``, the choices as a
    JSON list, or rules in llguidance's Lark of which ``body`` is the first. ``after``: free text that ends in this
    comes first, such as ``</think>``; with ``opened_by`` it may come, and begins so, such as ``<think>``. Raises
    UsageError for a text that is too long or cannot be read, and for a demand that cannot be followed.
    """

    kind: GrammarKind
    text: str
    after: str | None = None
    opened_by: str | None = None

    def __post_init__(self) -> None:
        try:
            num_bytes = len(self.text.encode())
            if self.is_lark:
                self.lark()
            elif self.kind == "regex" and looks_around(self.text):
                raise UsageError(
                    "the regex demands looking ahead or behind, which cannot be followed: leave it out"
                )
            else:
                self.format()
        except UsageError:
            raise
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"the {self.kind} cannot be read: {error}") from None
        if num_bytes > MAX_TEXT_BYTES:
            raise UsageError(
                f"the {self.kind} has {num_bytes} bytes; expected at most {MAX_TEXT_BYTES}: simplify it"
            )

    @classmethod
    def any_json(cls) -> "Grammar":
        """Any JSON object."""
        return cls("json_schema", '{"type": "object"}')

    @classmethod
    def choice(cls, texts: Sequence[str]) -> "Grammar":
        """One of ``texts``."""
        return cls("choice", json.dumps(list(texts)))

    @property
    def is_lark(self) -> bool:
        """Whether llguidance follows it."""
        return self.kind in ("json_schema", "lark")

    def lark(self) -> str:
        """As llguidance's Lark says it."""
        body = self.text
        if self.kind == "json_schema":
            body = f"body: {json_rule(json.loads(self.text))}\n"
        if self.after is None:
            return f"start: body\n{body}"
        opened = f"{json.dumps(self.opened_by)} " if self.opened_by else ""
        thoughts = f"thoughts[suffix={json.dumps(self.after)}]: /(?s:.*)/\nSPACE: /\\s{{0,4}}/\n"
        start = f"({opened}thoughts SPACE){'?' if opened else ''} body"
        return f"start: {start}\n{thoughts}{body}"

    def format(self) -> dict[str, Any]:
        """As xgrammar's structural tags say it."""
        own: dict[str, Any]
        if self.kind == "regex":
            own = {"type": "regex", "pattern": self.text}
        elif self.kind == "ebnf":
            own = {"type": "grammar", "grammar": self.text}
        elif self.kind == "choice":
            texts = json.loads(self.text)
            if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
                raise ValueError("expected a list of texts")
            own = {"type": "or", "elements": [{"type": "const_string", "value": text} for text in texts]}
        else:
            raise ValueError(f"a {self.kind} is written in Lark")
        if self.after is None:
            return own
        before: dict[str, Any] = {"type": "tag", "content": {"type": "any_text"}, "end": self.after}
        space = {"type": "regex", "pattern": r"\s{0,4}"}
        if self.opened_by is None:
            return {"type": "sequence", "elements": [before | {"begin": ""}, space, own]}
        thoughts = {"type": "sequence", "elements": [before | {"begin": self.opened_by}, space]}
        return {"type": "sequence", "elements": [{"type": "optional", "content": thoughts}, own]}


def json_rule(schema: Any) -> str:
    """The right side of a Lark rule for JSON text that fits ``schema``. Raises UsageError, see json_schema.py."""
    told = rewritten(schema)
    if not isinstance(told, dict):
        told = {} if told else {"not": {}}
    if not told.get("enum", True) or "not" in told:
        raise UsageError("the json_schema allows no value at all")
    spaces = {"whitespace_pattern": rf"[ \n\r\t]{{0,{_MAX_SPACES}}}"}
    return f"%json {json.dumps(told | {'x-guidance': spaces})}"


class Matcher(Protocol):
    """What xgrammar's matcher and ours have in common."""

    def accept_token(self, token: int) -> bool:
        """Take one token; False: it may not come next."""
        ...

    def is_terminated(self) -> bool:
        """Whether the answer has ended."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Take tokens back."""
        ...

    def fill_next_token_bitmask(self, allowed: Any, row: int) -> Any:
        """Note in a row of bits which tokens may come next."""
        ...


class GrammarState:
    """Where one answer stands in its grammar: which tokens may come next, and after each token of a draft."""

    def __init__(self, compiled: "CompiledGrammar | LarkMatcher", vocab_size: int) -> None:
        import xgrammar

        self._xgrammar, self._vocab_size = xgrammar, vocab_size
        self._matcher: Matcher
        if isinstance(compiled, LarkMatcher):
            self._matcher = compiled.copy()
        else:
            self._matcher = xgrammar.GrammarMatcher(compiled)
        self._num_tokens = 0  # of the answer, that the matcher has taken
        self._walked: tuple[int, list[int]] | None = None
        self._allowed: Any = None  # bits [1 + len(draft), vocab_size / 32]
        self._failure = ""

    def cut(self, output: Sequence[int], draft: Sequence[int]) -> list[int]:
        """The first tokens of ``draft`` that may follow ``output``; none behind an end token."""
        started = thread_time()
        matcher = self._matcher
        for token in output[self._num_tokens :]:
            if (
                matcher.is_terminated()
            ):  # a tree goes on behind an end token, and nothing of that is delivered
                break
            if not matcher.accept_token(token):  # an error of one answer, not of the engine that all share
                self._failure = f"its token {token} is not allowed there"
                return self._stuck(output)
            self._num_tokens += 1
        self._num_tokens = len(output)
        allowed = self._xgrammar.allocate_token_bitmask(1 + len(draft), self._vocab_size)
        num_walked = self._walk(draft, allowed)
        # A draft may not lead to where nothing is allowed: plain decoding would stop before it.
        num_fit = next((k - 1 for k in range(1, num_walked + 1) if not allowed[k].any()), num_walked)
        if not allowed[0].any():
            reason = getattr(matcher, "failure", "") or "this model's tokens cannot end it"
            self._failure = f"nothing may follow what was answered so far; {reason}"
        if thread_time() - started > MAX_MASK_S:
            self._failure = "it can be read in too many ways: simplify it"
        fitting = list(draft[:num_fit])
        self._walked, self._allowed = (len(output), fitting), allowed[: 1 + num_fit]
        return fitting

    def _stuck(self, output: Sequence[int]) -> list[int]:
        """Nothing may follow ``output``, and nothing of a draft does."""
        self._allowed = self._xgrammar.allocate_token_bitmask(1, self._vocab_size)
        self._walked = (len(output), [])
        return []

    def rewind(self) -> None:
        """Back to the start."""
        self._matcher.rollback(self._num_tokens)
        self._num_tokens, self._walked, self._failure = 0, None, ""

    def forbid(self, logits: "Tensor", output: Sequence[int], draft: Sequence[int]) -> None:
        """Set the logits that may not be chosen after ``output`` and each of ``draft`` to -inf, in place.

        ``logits`` [1 + len(draft), vocab_size]; ``draft`` as :meth:`cut` left it. Raises UsageError when the
        grammar has no way on, or has become too slow to follow.
        """
        if self._walked != (len(output), list(draft)):
            assert self.cut(output, draft) == list(draft), "the draft was not cut"
        if self._failure:
            raise UsageError(f"the answer cannot follow its grammar: {self._failure}")
        backend: Any = "auto" if logits.device.type == "cpu" else "torch_native"
        self._xgrammar.apply_token_bitmask_inplace(logits, self._allowed.to(logits.device), backend=backend)

    def _walk(self, draft: Sequence[int], allowed: "Tensor") -> int:
        """Fill the rows of ``allowed``, as far as ``draft`` keeps to the grammar; how many tokens that is."""
        matcher, num_fit = self._matcher, 0
        if matcher.is_terminated():
            return 0  # the row stays open, as below
        matcher.fill_next_token_bitmask(allowed, 0)
        for token in draft:
            if not matcher.accept_token(token):
                break
            num_fit += 1
            if matcher.is_terminated():  # the row after it stays open: the answer has ended
                break
            matcher.fill_next_token_bitmask(allowed, num_fit)
        if num_fit:
            matcher.rollback(num_fit)
        return num_fit


class GrammarCompiler:
    """Makes grammars usable with one tokenizer; compiled ones are kept. For several threads.

    ``vocab_size``: of the model's logits. Raises UsageError without a tokenizer or an end token, or when
    xgrammar is not there.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        try:
            import llguidance  # noqa: F401 - asked for here, so that what is missing is said at once
            import xgrammar
        except ImportError as error:
            raise UsageError(f"structured output needs {error.name}; install it: {_INSTALL}") from None
        ends = sorted(set(eos_token_ids))
        if tokenizer is None or not ends:
            missing = "a tokenizer" if tokenizer is None else "an end token, and the model has none"
            raise UsageError(f"structured output needs {missing}")
        self.vocab_size, self._ends = vocab_size, frozenset(ends)
        self._lark_tokenizer = lark_tokenizer(tokenizer, vocab_size, ends)
        detected = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        texts = [""] * vocab_size  # a token without text is in no grammar
        for text, token in tokenizer.get_vocab().items():
            if token < vocab_size and token not in special:
                texts[token] = text
        info = xgrammar.TokenizerInfo(
            texts,
            detected.vocab_type,
            vocab_size=vocab_size,
            stop_token_ids=ends,
            add_prefix_space=detected.add_prefix_space,
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self._compiled = lru_cache(_NUM_KEPT)(self._compile)

    def begin(self, grammar: Grammar) -> GrammarState:
        """A state at the start of ``grammar``. Raises UsageError for one that is wrong, too large or too slow."""
        return GrammarState(self._compiled(grammar), self.vocab_size)

    def _compile(self, grammar: Grammar) -> "CompiledGrammar | LarkMatcher":
        compiled = self._lark(grammar) if grammar.is_lark else self._tag(grammar)
        self._try(GrammarState(compiled, self.vocab_size))
        return compiled

    def _lark(self, grammar: Grammar) -> LarkMatcher:
        try:
            return LarkMatcher(self._lark_tokenizer, grammar.lark(), self._ends)
        except UsageError as error:
            what = "grammar of the tools" if grammar.kind == "lark" else grammar.kind
            raise UsageError(f"the {what} cannot be used: {error}") from None

    def _tag(self, grammar: Grammar) -> "CompiledGrammar":
        tag = {"type": "structural_tag", "format": grammar.format()}
        try:
            compiled = self._compiler.compile_structural_tag(json.dumps(tag))
        except (RuntimeError, ValueError) as error:
            reason = " ".join(_NOISE.sub("", str(error)).split())[:300]
            raise UsageError(f"the {grammar.kind} cannot be used: {reason}") from None
        if (num_bytes := compiled.memory_size_bytes) > MAX_COMPILED_BYTES:
            raise UsageError(
                f"the {grammar.kind} takes {num_bytes} bytes; expected at most {MAX_COMPILED_BYTES}: simplify it"
            )
        return compiled

    def _try(self, state: GrammarState) -> None:
        """Walk at random, so that a grammar that is slow or stuck from the start never meets an engine."""
        import torch

        generator, output = torch.Generator().manual_seed(0), list[int]()
        while len(output) < _NUM_TRIED and self._ends.isdisjoint(output):
            logits = torch.rand(1, self.vocab_size, generator=generator)
            state.forbid(logits, output, [])
            output.append(int(logits.argmax()))


@lru_cache(maxsize=4)
def _compiler(tokenizer: Any, vocab_size: int, eos_token_ids: frozenset[int]) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, vocab_size, eos_token_ids)


def begin_grammar(
    grammar: Grammar | None, tokenizer: Any, vocab_size: int, eos_token_ids: Iterable[int]
) -> GrammarState | None:
    """The state of a new answer; None without a grammar. Raises UsageError, see :class:`GrammarCompiler`."""
    if grammar is None:
        return None
    return _compiler(tokenizer, vocab_size, frozenset(eos_token_ids)).begin(grammar)
