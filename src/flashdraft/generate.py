"""The algorithm on one page: draft a block, verify it in one forward, keep what the target agrees with.

DFlash (arXiv 2602.06036, algorithm 1). Plain decoding is a block of size 1 through the same lines. This page is
also the oracle that faster engines are tested against.
"""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor

from flashdraft.admission import check_request, check_tree
from flashdraft.answer import Answer, GenerateOutput, RoundEvent
from flashdraft.batch import ForwardBatch
from flashdraft.detokenizer import Decodes
from flashdraft.grammar import begin_grammar
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import Drafter, DraftShape, OneRequest
from flashdraft.spec_decode.tree import DraftTree


@torch.inference_mode()
def generate(
    target: TargetModel,
    drafter: Drafter | None,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    block_size: int | None = None,
    eos_token_ids: Sequence[int] = (),
    on_round: Callable[[RoundEvent], None] | None = None,
    tokenizer: Decodes | None = None,
    draft_tree: int | None = None,
) -> GenerateOutput:
    """Answer one prompt.

    ``block_size``: tokens of a block, anchor included; 1 is plain decoding, None the drafter's largest.
    ``draft_tree``: tokens of a tree to verify in place of the block, anchor included.
    ``on_round`` hears every verification as it happens; the first call carries the token of the prefill.
    ``tokenizer``: for the answer's text, for stop texts and for a grammar.
    Raises UsageError for what cannot be served: check_request, check_tree, begin_grammar.
    """
    prompt = list(prompt_token_ids)
    block_size = check_request(target, drafter, prompt, block_size, params)
    tree_size = check_tree(drafter, draft_tree)
    max_len = min(len(prompt) + params.max_tokens, target.config.max_position_embeddings)
    state = OneRequest(drafter, max_len) if drafter and block_size > 1 else None
    layers = drafter.feature_layers if drafter and state else ()
    cache = target.new_cache(1, max_len + tree_size)
    grammar = begin_grammar(params.grammar, tokenizer, target.config.vocab_size, eos_token_ids)
    answer = Answer(prompt, params, max_len - len(prompt), eos_token_ids, tokenizer, grammar)
    metrics, hear = answer.output.metrics, on_round or (lambda _event: None)
    started = perf_counter()
    forward = target.forward(ForwardBatch.of_row(prompt, 0, target.device), cache, layers)
    logits = target.logits(forward.hidden[0, 0 if answer.scores_prompt else -1 :])
    answer.score_prompt(logits, len(prompt) - len(logits))
    _, anchor = _follow(DraftTree(), logits := logits[-1:], answer)
    cache.commit(len(prompt))
    metrics.prefill_s = perf_counter() - started
    hear(answer.deliver([anchor], 0, 0, logits))
    verified = prompt  # tokens whose features the drafter has not seen yet
    while answer.goes_on:
        started = perf_counter()
        start = cache.lengths[0]
        draft = DraftTree()
        if state:
            state.observe(verified, forward.features)
            # The drafter always sees a whole block, as in training; the verified part may be shorter.
            shape = DraftShape(block_size - 1, tree_size - 1 if tree_size else None, answer.draft_sampling)
            draft = answer.trim(state.propose(anchor, shape), max_len - start - 2)
        drafted = perf_counter()
        block = [anchor, *draft.token_ids]
        batch = ForwardBatch.of_row(block, start, target.device, draft.parents)
        forward = target.forward(batch, cache, layers)
        logits = target.logits(forward.hidden[0])
        path, anchor = _follow(draft, logits, answer)
        metrics.record_seconds(drafted - started, perf_counter() - drafted)
        cache.commit_path(path)
        verified, forward = [block[place] for place in path], forward.at(path)
        metrics.record_round(draft, len(path) - 1)
        hear(answer.deliver([*verified[1:], anchor], len(draft), len(path) - 1, logits[path]))
        metrics.decode_s += perf_counter() - started
    return answer.output


def _follow(draft: DraftTree, logits: Tensor, answer: Answer) -> tuple[list[int], int]:
    """The lossless rule: the path of ``draft`` that the target takes itself, and its own token after that.

    ``logits`` [1 + len(draft), vocab_size], behind the anchor (place 0) and behind each draft token. The engine's form
    of the rule is Answer.follow.
    """
    path, text = [0], list(answer.output.token_ids)
    while True:
        [token] = answer.chooser.choose(logits[path[-1]].unsqueeze(0), text)
        drafted = enumerate(zip(draft.parents, draft.token_ids, strict=True), start=1)
        place = next((place for place, found in drafted if found == (path[-1], token)), None)
        if place is None:
            return path, token
        path, text = [*path, place], [*text, token]
