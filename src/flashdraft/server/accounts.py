"""What a request cost, in OpenAI's, vLLM's and SGLang's words: tokens, thoughts, found prefixes, speculation."""

from collections.abc import Iterable, Sequence
from typing import Any

from flashdraft.server.answer_parts import Reader, Thinking, reader_of
from flashdraft.server.answer_text import TokenPiece
from flashdraft.server.api_errors import Json
from flashdraft.server.call_styles import Tools
from flashdraft.server.service import Answer, Submission
from flashdraft.spec_decode.metrics import RequestMetrics


class ThoughtCounts:
    """How many tokens of each answer are thoughts, the marks around them included. No token is read twice."""

    def __init__(self, thinking: Thinking, tools: Tools | None) -> None:
        self._thinking, self._tools = thinking, tools
        self._counts: dict[int, _ThoughtCount] = {}  # by id of the answer

    def of(self, answer: Answer) -> int:
        """So many of ``answer`` so far."""
        if self._thinking == "none":
            return 0
        if (count := self._counts.get(id(answer))) is None:
            count = self._counts[id(answer)] = _ThoughtCount(reader_of(self._thinking, self._tools))
        count.read(answer.pieces)
        return count.num_thoughts


class _ThoughtCount:
    def __init__(self, reader: Reader) -> None:
        self._reader, self._is_over = reader, False
        self._num_pieces = self._num_tokens = self.num_thoughts = 0

    def read(self, pieces: Sequence[TokenPiece]) -> None:
        """Take what is new of the answer's ``pieces``."""
        while not self._is_over and self._num_pieces < len(pieces):
            piece, reader = pieces[self._num_pieces], self._reader
            self._num_pieces += 1
            self._num_tokens += piece.token_id is not None
            before = reader.is_thinking
            reader.push(piece.text)
            if before or reader.is_thinking:
                self.num_thoughts = self._num_tokens
            else:
                self._is_over = reader.has_begun


def usage(submission: Submission, thoughts: ThoughtCounts | None = None) -> Json:
    """OpenAI's usage, over all answers; a prompt that several answers share counts once."""
    answers = submission.answers
    prompts = {id(one.wish.prompt_token_ids): one for one in reversed(answers)}  # each with its first answer
    num_prompt = sum(len(one.wish.prompt_token_ids) for one in prompts.values())
    num_output = sum(len(one.token_ids) for one in answers)
    num_accepted = sum(one.metrics.num_accepted for one in answers)
    num_drafted = sum(one.metrics.num_drafted for one in answers)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": sum(one.num_cached_tokens for one in prompts.values())},
        "completion_tokens_details": {
            "accepted_prediction_tokens": num_accepted,
            "rejected_prediction_tokens": num_drafted - num_accepted,
            "reasoning_tokens": sum(map(thoughts.of, answers)) if thoughts else 0,
        },
    }


def speculation(answers: Iterable[Answer]) -> Json:
    """vLLM's per-request ``metrics``, over all answers; a round without a draft counts as a step that accepted none."""
    metrics = _summed(answers)
    steps, drafted = metrics.num_rounds, metrics.num_drafted
    return {
        "speculative_decoding": {
            "mean_acceptance_length": metrics.acceptance_length,
            "draft_acceptance_rate": metrics.num_accepted / drafted if drafted else 0.0,
            "acceptance_histogram": metrics.accepted_histogram,
            "num_spec_steps": steps,
            "num_accepted_draft_tokens": metrics.num_accepted,
            "num_draft_tokens": drafted,
            "num_spec_tokens": max(len(metrics.verified_histogram) - 2, 0),
        }
    }


def sglang_speculation(answer: Answer) -> Json:
    """SGLang's ``sglext.spec_tokens_details`` of one answer; the cap is how many tokens of a draft were verified."""
    metrics = answer.metrics
    caps = metrics.verified_histogram[1:]
    num_capped = sum(size * times for size, times in enumerate(caps))
    rounds = max(metrics.num_rounds, 1)
    return {
        "spec_accept_rate": metrics.num_accepted / metrics.num_drafted if metrics.num_drafted else 0.0,
        "spec_accept_length": metrics.acceptance_length,
        "spec_cap_length": num_capped / rounds,
        "spec_block_accept_length": metrics.acceptance_length,
        "spec_num_correct_drafts": metrics.num_accepted,
        "spec_num_proposed_drafts": metrics.num_drafted,
        "spec_verify_ct": metrics.num_rounds,
        "spec_correct_drafts_histogram": metrics.accepted_histogram,
        "spec_cap_lens_histogram": caps,
    }


def _summed(answers: Iterable[Answer]) -> RequestMetrics:
    total = RequestMetrics(num_requests=0)
    for one in answers:
        total.add(one.metrics)
    return total


def meta_info(submission: Submission, index: int) -> dict[str, Any]:
    """SGLang's account of one answer."""
    answer = submission.answers[index]
    metrics = answer.metrics
    return {
        "id": f"{submission.id}-{index}",
        "finish_reason": {"type": answer.finish_reason} if answer.finish_reason else None,
        "prompt_tokens": len(answer.wish.prompt_token_ids),
        "completion_tokens": len(answer.token_ids),
        "cached_tokens": answer.num_cached_tokens,
        "e2e_latency": answer.total_s,
        "spec_accept_length": metrics.acceptance_length,
        "spec_verify_ct": metrics.num_rounds,
    }
