"""Prompts' chunks recorded layer by layer against the same target without recordings: every token has the same bits."""

import pytest
import torch
import torch.nn.functional as F

from flashdraft.cache.paged_kv_cache import CacheRow
from toys import toy_hybrid, toy_target

pytest.importorskip("triton")
from flashdraft.cuda import products
from flashdraft.cuda.target import CudaTarget

ON_GPU = torch.cuda.is_available()
PAGE, NUM_PAGES, NUM_SLOTS = 16, 64, 5
CHUNKS = [65, 63, 1, 127, 64, 128]  # tokens, each behind those before


@pytest.fixture(autouse=True)
def products_alone(monkeypatch):
    """On a GPU a token's product does not depend on the tokens beside it (tests/gpu/test_products.py); on a CPU it does."""
    if ON_GPU:
        return

    def product(x, weight, bias, out):
        made = torch.cat([F.linear(token, weight, bias) for token in x.split(1)])
        return made if out is None else out.copy_(made)

    monkeypatch.setattr(products, "_product", product)


def _hybrid():
    sizes = {"num_hidden_layers": 2, "full_attention_interval": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "linear_num_key_heads": 1, "linear_num_value_heads": 2}
    if ON_GPU:
        sizes = {"linear_key_head_dim": 64, "linear_value_head_dim": 64, "head_dim": 64}
    return toy_hybrid(**sizes)


def _llama():
    return toy_target(**({"head_dim": 64} if ON_GPU else {"num_hidden_layers": 2}))


class Served:
    """A target with pages and states that hold what other rows left; nothing is a number where padding goes."""

    def __init__(self, model, is_recorded=True):
        self.target = CudaTarget(model)
        cache = self.cache = self.target.new_cache(NUM_PAGES, PAGE, 2 * PAGE)
        self.states = self.target.new_states(NUM_SLOTS, 1, 4)
        self.rows = self.target.new_rows(cache, self.states)
        if not is_recorded:
            self.target._recorded_chunk = None
        generator = torch.Generator(model.device).manual_seed(1)
        cache.slots.normal_(generator=generator)
        self.scratch = self.rows.scratch_page * PAGE
        cache.slots[self.scratch :] = float("nan")
        for states in self.kept:
            states.normal_(generator=generator)
            states[:, -1] = float("nan")
        for slot in range(2 if self.states else 0):
            self.states.begin(slot, None)

    @property
    def kept(self):
        return (self.states.recurrent, self.states.conv) if self.states else ()

    @torch.inference_mode()
    def prefill(self, *chunks):
        """Chunks (row, start, count, snapshots): final hidden states and features."""
        placed, ids = [], []
        for row, start, count, snapshots in chunks:
            pages = range(row * 32, row * 32 + 32)
            placed.append(CacheRow(row, pages, start, row if self.states else None, snapshots))
            ids.append([(7 * at + row) % 97 for at in range(start, start + count)])
        outputs = self.target.prefill(self.rows, placed, ids, [0, 1])
        return [tensor.clone() for one in outputs for tensor in (one.hidden, one.features)]

    def held(self):
        """All that rows have, padding's part aside."""
        return [self.cache.slots[: self.scratch], *(states[:, :-1] for states in self.kept)]


def _same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


@pytest.fixture(params=[_hybrid, _llama])
def pair(request):
    model = request.param()
    model = model.to("cuda", torch.bfloat16) if ON_GPU else model
    return Served(model), Served(model, is_recorded=False)


def test_chunks_behind_each_other(pair):
    """Of all lengths; what a second row has stays, and padding spreads nothing that is no number."""
    recorded, plain = pair
    start = 0
    chunks = CHUNKS if ON_GPU or recorded.states else CHUNKS[:3]
    for count in chunks:
        chunk = (0, start, count, ())
        _same(recorded.prefill(chunk), plain.prefill(chunk))
        start += count
    _same(recorded.held(), plain.held())
