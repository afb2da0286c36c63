"""DFlash 2's parts against those of speculators 0.9.0, float32, random weights: a second independent implementation.

Its functions are taken out of the installed source: its package imports data sets and trainers that nothing here needs.
"""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from flashdraft.models.dflash2 import BlockConv
from flashdraft.spec_decode.candidates import candidates_of
from flashdraft.train.loss import selector_loss
from toys import toy_dflash2, toy_target

TARGET = toy_target()


def taken_from(file: str, *names: str) -> dict[str, Any]:
    """Functions and classes of a file of speculators' DFlash 2, by name."""
    package = find_spec("speculators")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "models" / "dflash2" / file
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    found: dict[str, Any] = {"torch": torch, "nn": torch.nn, "functional": F}
    exec(compile(tree, str(path), "exec"), found)
    return found


NETWORK = taken_from(
    "model_definitions.py", "grouped_dynamic_conv", "GroupedDynamicCausalConv", "CandidateSelector"
)
LOSS = taken_from("metrics.py", "selector_training_candidates", "_candidate_cross_entropy")


@torch.no_grad()
@pytest.mark.parametrize(("num_taps", "group_size"), [(2, 16), (3, 4)])
def test_convolutions_are_theirs_to_the_bit(num_taps: int, group_size: int) -> None:
    ours = BlockConv(48, num_taps, group_size)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(num_taps))
    theirs = NETWORK["GroupedDynamicCausalConv"](
        48, block_size=8, kernel_size=num_taps, group_size=group_size
    )
    theirs.load_state_dict(ours.state_dict())
    x, u = torch.randn(2, 3, 24, 48, generator=torch.Generator().manual_seed(0))  # three blocks a row
    kernels = ours.kernels(x, 8)
    prepared, after = theirs.prepare(x)
    assert torch.equal(ours(x, kernels, 0), prepared)
    assert torch.equal(ours(u, kernels, 1), theirs.finish(u, after))
    assert not torch.equal(prepared, x)


@torch.no_grad()
def test_the_walk_and_its_probabilities_are_theirs() -> None:
    model = toy_dflash2(TARGET, std=0.6)
    selector, config = model.candidate_selector, model.config
    assert selector is not None
    theirs = NETWORK["CandidateSelector"](
        vocab_size=97, hidden_size=48, rank=config.selector_rank, top_k=config.selector_top_k
    )
    theirs.load_state_dict(selector.state_dict())
    hidden = torch.randn(4, 7, 48, generator=torch.Generator().manual_seed(0))
    anchors = torch.arange(4)
    walked = candidates_of(model, TARGET, hidden, anchors, 1).walk()
    logits, before, num_moved = TARGET.logits(hidden), anchors, 0
    for slot in range(7):
        ids, scores = theirs.select(logits[:, slot], hidden[:, slot], before)
        best = scores.argmax(-1, keepdim=True)
        before = ids.gather(1, best).squeeze(1)
        num_moved += int((before != logits[:, slot].argmax(-1)).sum())
        assert torch.equal(walked.token_ids[:, slot, 0], before)
        torch.testing.assert_close(walked.log_probs[:, slot], scores.log_softmax(-1).gather(1, best))
    assert num_moved > 5  # the slots alone would say otherwise


def test_the_selectors_loss_is_theirs() -> None:
    drafter = toy_dflash2(TARGET, std=0.5)
    selector, config = drafter.candidate_selector, drafter.config
    assert selector is not None
    theirs = NETWORK["CandidateSelector"](
        vocab_size=97, hidden_size=48, rank=config.selector_rank, top_k=config.selector_top_k
    )
    theirs.load_state_dict(selector.state_dict())
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 48, generator=generator)
    labels, before = torch.randint(97, (2, 40), generator=generator)
    logits = TARGET.logits(hidden)
    labels[:20] = logits[:20].argmax(1)
    ids, places, is_there = LOSS["selector_training_candidates"](
        logits.topk(config.selector_top_k).indices, labels
    )
    assert 5 < int((~is_there).sum()) < 25
    expected = LOSS["_candidate_cross_entropy"](
        theirs.score_candidates(logits, hidden, before, ids), places
    ).mean()
    candidates = logits.topk(config.selector_top_k).indices
    found = selector_loss(drafter, TARGET.head_weight(), hidden, candidates, labels, before, None, False)
    torch.testing.assert_close(found, expected)
