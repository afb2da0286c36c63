"""The candidate selector as a C++ call, against its modules."""

import pytest
import torch
from torch import Tensor

from flashdraft.cache.kv_cache import KVCache
from flashdraft.native.accelerate import accelerate_drafter
from flashdraft.native.library import library
from flashdraft.spec_decode.candidates import candidates_of
from flashdraft.spec_decode.dflash import DFlashDrafter
from native_pair import draft_network, make
from toys import DFLASH2

pytestmark = pytest.mark.skipif(library() is None, reason="this CPU has no AVX-512 bf16 and VNNI")


@torch.inference_mode()
@pytest.mark.parametrize("count", [6, 16])
def test_a_selectors_scores_match_its_modules(count: int) -> None:
    target, _ = make()
    network = draft_network(target, **{**DFLASH2, "selector_top_k": count})
    selector = network.candidate_selector
    assert selector
    selector.freeze(target.head_weight())
    fast = accelerate_drafter(network, target.head_weight())
    assert fast
    assert fast.native.selector
    hidden, anchors = torch.randn(3, 7, 96).bfloat16(), torch.tensor([3, 9, 4])
    found = candidates_of(network, target, hidden, anchors, 1, fast)
    before = torch.cat((anchors[:, None, None].expand(-1, 1, count), found.token_ids[:, :-1]), 1)
    wanted = selector(hidden, before, found.token_ids, target.head_weight())
    assert found.pairs is not None
    assert wanted.std() > 0.01
    torch.testing.assert_close(found.pairs, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    alone = fast.native.selector.pairs(hidden[1:2, :4], anchors[1:2], found.token_ids[1:2, :4])
    assert torch.equal(alone, found.pairs[1:2, :4])


def drafting(
    **changes: int,
) -> tuple[DFlashDrafter, tuple[Tensor, Tensor, int, KVCache, Tensor, int]]:
    """A drafter, and what it drafts of: three rows, not all as long as the longest."""
    target, _ = make()
    network = draft_network(target, **{**DFLASH2, **changes})
    assert network.candidate_selector
    network.candidate_selector.freeze(target.head_weight())
    fast = accelerate_drafter(network, network.head_rows(target.head_weight()))
    drafter = DFlashDrafter(network, target, fast)
    cache, blocks = network.new_cache(3, 24), drafter.blocks([3, 9, 4], 8)
    pairs = network.context(torch.randn(3, 13, 192).bfloat16(), torch.arange(13).expand(3, -1))
    for layer, (k, v) in zip(cache.layers, pairs, strict=True):
        layer.k[:, :, :13], layer.v[:, :, :13] = k, v
    return drafter, (blocks, torch.arange(13, 21).expand(3, -1), 21, cache, torch.tensor([21, 17, 20]), 4)


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{"selector_rank": 8}, {"selector_rank": 20}, {"draft_vocab_size": 4}])
def test_one_call_drafts_what_its_parts_draft(changes: dict[str, int]) -> None:
    """Chains and trees; a draft vocabulary may have fewer tokens than a selector scores."""
    drafter, given = drafting(**changes)
    whole, parts = drafter.candidates(*given), drafter.candidates(*given, with_pairs=True)
    assert whole.pairs is None
    depths = [7, 3, 6]
    every = (*whole.trees(depths, [12, 6, 0], 4), *whole.chains(depths))
    wanted = (*parts.trees(depths, [12, 6, 0], 4), *parts.chains(depths))
    assert len(set(every[0].parents)) > 2
    for ours, theirs in zip(every, wanted, strict=True):
        assert (ours.token_ids, ours.parents) == (theirs.token_ids, theirs.parents)
        assert ours.log_probs == pytest.approx(theirs.log_probs, rel=1e-4, abs=1e-4)
    some = whole.at(slice(1, 3))
    assert some.chains(depths[1:]) == whole.chains(depths)[1:]


@torch.inference_mode()
@pytest.mark.parametrize("with_pairs", [False, True])
def test_a_row_without_numbers_drafts_tokens_that_there_are(with_pairs: bool) -> None:
    """They are looked up in codebooks, and the target embeds them. Its neighbours draft what they did."""
    drafter, given = drafting()
    before = drafter.candidates(*given, with_pairs=with_pairs).chains([7, 3, 6])
    given[3].layers[0].v[1, :, :13] = float("nan")
    found = drafter.candidates(*given, with_pairs=with_pairs)
    assert found.log_probs[1, :3].isnan().all()
    assert found.token_ids.min() >= 0
    assert found.token_ids.max() < 97
    drafts = found.chains([7, 3, 6])
    assert [drafts[0], drafts[2]] == [before[0], before[2]]
