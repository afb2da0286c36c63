"""What a request may ask of a target and its drafter: refused here, with the mend, before any work."""

from collections.abc import Sequence
from typing import Literal

from flashdraft.errors import UsageError
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import Drafter

AUTO: Literal["auto"] = "auto"
BlockSize = int | Literal["auto"]  # tokens of a block, anchor included, or the controller's choice
MAX_TREE = 256  # tokens of a tree


def check_block_size(drafter: Drafter | None, block_size: BlockSize) -> BlockSize:
    """The block size to use: with nothing to draft with, "auto" is plain decoding. Raises UsageError."""
    if isinstance(block_size, int):
        return _checked_size(drafter, block_size)
    if block_size != AUTO:
        raise UsageError(f"block_size is {block_size!r}; expected {AUTO} or a number of tokens")
    return AUTO if drafter and drafter.max_block_size > 1 else 1


def check_tree(drafter: Drafter | None, draft_tree: int | None) -> int:
    """Tokens of a tree; 0: drafts are chains. Raises UsageError for what cannot draft one."""
    if draft_tree is None:
        return 0
    found = f"draft_tree is {draft_tree}"
    if not 2 <= draft_tree <= MAX_TREE:
        raise UsageError(f"{found}; expected 2 to {MAX_TREE} tokens, anchor included")
    if drafter is None or not drafter.can_branch:
        raise UsageError(
            f"{found}, but {'there is no drafter' if drafter is None else 'this drafter drafts one token a place'};"
            " expected a DFlash drafter, whose one forward gives all places of a block their likeliest tokens"
        )
    return draft_tree


def check_request(
    target: TargetModel,
    drafter: Drafter | None,
    prompt: Sequence[int],
    block_size: int | None,
    params: SamplingParams | None = None,
) -> int:
    """The block size to use. Raises UsageError, before any work, for what cannot be served."""
    context = target.config.max_position_embeddings
    vocab_size = target.config.vocab_size
    if not prompt:
        raise UsageError("the prompt is empty; expected at least one token")
    if len(prompt) >= context:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens; expected at most {context - 1}, the model's context less one"
            " token of answer: shorten it"
        )
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        bad = next(token for token in prompt if not 0 <= token < vocab_size)
        raise UsageError(f"the prompt holds token id {bad}; expected ids from 0 to {vocab_size - 1}")
    for token in (*(params.logit_bias if params else ()), *(params.stop_token_ids if params else ())):
        if not 0 <= token < vocab_size:
            raise UsageError(
                f"logit_bias or stop_token_ids names token id {token}; expected 0 to {vocab_size - 1}"
            )
    if block_size is None:
        return drafter.max_block_size if drafter else 1
    return _checked_size(drafter, block_size)


def _checked_size(drafter: Drafter | None, block_size: int) -> int:
    largest = drafter.max_block_size if drafter else 1
    if not 1 <= block_size <= max(largest, 1):
        mend = "" if drafter else " (there is no drafter: give one, or block_size=1 for plain decoding)"
        raise UsageError(f"block_size is {block_size}; expected 1 to {largest}{mend}")
    return block_size
