"""The candidate selector as a C++ call, against its modules."""

import pytest
import torch

from flashdraft.native.accelerate import accelerate_drafter
from flashdraft.native.library import library
from flashdraft.spec_decode.candidates import candidates_of
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
