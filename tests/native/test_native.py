"""The C++ part against the PyTorch modules, and against itself: one row's result is the same bits in any batch."""

from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.cache.kv_cache import KVShape
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.native import library as library_file
from flashdraft.native.accelerate import accelerate, accelerate_drafter
from flashdraft.native.decoder import DrafterDecoder
from flashdraft.native.drafter import NativeDrafter
from flashdraft.native.library import library
from flashdraft.native.packing import Kind
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.candidates import candidates_of
from flashdraft.spec_decode.dflash import DFlashDrafter
from native_pair import SHAPE, draft_network, ids, logits_of, make
from toys import DFLASH2, Alone, toy_target

pytestmark = pytest.mark.usefixtures("cpu_path")

QUANTIZATIONS = (None, "int8", "int4")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 9, 16, 17, 33])
def test_matches_the_modules(quantization: str | None, num_tokens: int) -> None:
    target, reference = make(quantization)
    tokens = ids(num_tokens + 45)
    chunks = [45, num_tokens]
    got, wanted = logits_of(target, tokens, chunks), logits_of(reference, tokens, chunks)
    # Activations are rounded to 8 bits of mantissa, or to 127 steps of their block's largest.
    assert (got - wanted).abs().max() < (0.02 if quantization is None else 0.04) * wanted.abs().max()
    assert torch.nn.functional.cosine_similarity(got, wanted).min() > (
        0.9998 if quantization is None else 0.999
    )


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_has_the_same_bits_in_any_chunk(quantization: str | None, threads: int) -> None:
    target, _ = make(quantization)
    tokens = ids(70)
    one_by_one = logits_of(target, tokens, [1] * 70)
    target.native.num_threads = threads
    for chunks in ([70], [7, 16, 17, 30], [33, 1, 36], [2] * 35):
        assert torch.equal(logits_of(target, tokens, chunks), one_by_one)


@torch.inference_mode()
def test_rows_do_not_touch_each_other() -> None:
    target, _ = make()
    lengths = [5, 40, 23]
    cache, alone = target.new_cache(3, 64), []
    for row, length in enumerate(lengths):
        own = target.new_cache(1, 64)
        target.forward(ForwardBatch.of_row(ids(length), 0), own)
        own.commit(length)
        for layer, from_layer in zip(cache.layers, own.layers, strict=True):
            layer.k[row], layer.v[row] = from_layer.k[0], from_layer.v[0]
        alone.append(target.forward(ForwardBatch.of_row(ids(4), length), own, (0, 2, -1)))
    positions = torch.tensor(lengths).unsqueeze(1) + torch.arange(4)
    batch = ForwardBatch(torch.tensor([ids(4)] * 3), positions, 44)
    together = target.forward(batch, cache, (0, 2, -1))
    for row in range(3):
        assert torch.equal(together.hidden[row], alone[row].hidden[0])
        assert together.features is not None
        assert alone[row].features is not None
        assert torch.equal(together.features[row], alone[row].features[0])
    assert torch.equal(together.features[..., 192:], together.hidden)


@torch.inference_mode()
def test_rows_in_pages_without_their_padding_have_the_bits_of_each_alone() -> None:
    target, _ = make()
    prompts, blocks = [ids(length) for length in (5, 40, 23)], [ids(4), ids(1), ids(9)]
    cache = PagedKVCache([KVShape(2, 32)] * 3, 60, 4, torch.bfloat16, "cpu", num_spare=32)
    cache.slots.fill_(float("nan"))  # whoever reads what is not its own shows it
    rows, pages = PagedRows(cache), [list(range(i, 60, 3)) for i in range(3)]
    for starts, tokens in (([0, 0, 0], prompts), ([5, 40, 23], blocks)):
        # Of its block the last row has too few pages: the rest of it is staged in spare ones.
        step = [
            CacheRow(i, pages[i][:8] if start == 23 else pages[i], start) for i, start in enumerate(starts)
        ]
        counts = torch.tensor([len(own) for own in tokens])
        positions, kv_len = rows.arrange(step, counts.tolist())
        padded = torch.tensor([(own + [0] * 40)[: max(counts)] for own in tokens])
        batch = ForwardBatch(padded, positions, kv_len, ends=positions[:, 0] + counts)
        out, best = target.greedy(batch, rows, (0, -1))
    for row, (prompt, block) in enumerate(zip(prompts, blocks, strict=True)):
        own = target.new_cache(1, 64)
        target.forward(ForwardBatch.of_row(prompt, 0), own)
        own.commit(len(prompt))
        alone = target.forward(ForwardBatch.of_row(block, len(prompt)), own, (0, -1))
        for name in ("hidden", "features"):
            assert torch.equal(getattr(out, name)[row, : len(block)], getattr(alone, name)[0])
        assert torch.equal(best[row, : len(block)], target.argmax(alone.hidden[0]))


@torch.inference_mode()
def test_a_token_of_a_tree_has_the_bits_of_its_path_alone() -> None:
    target, _ = make()
    parents = [0, 0, 1, 3, 2, 0, 4, 4, 7, 9, 9, 1]
    tokens, length = ids(13), 29
    cache = target.new_cache(1, 64)
    target.forward(ForwardBatch.of_row(ids(length), 0), cache)
    cache.commit(length)
    batch = ForwardBatch.of_row(tokens, length, parents=parents)
    assert batch.tree
    tree = target.forward(batch, cache).hidden[0]
    for place in range(13):
        path = [place]
        while path[0]:
            path.insert(0, parents[path[0] - 1])
        own = target.new_cache(1, 64)
        target.forward(ForwardBatch.of_row(ids(length), 0), own)
        own.commit(length)
        chain = target.forward(ForwardBatch.of_row([tokens[at] for at in path], length), own).hidden[0]
        assert torch.equal(tree[place], chain[-1])
    cache.commit_path([0, 1, 3, 4, 7])
    own.commit_path([0])
    chain = target.forward(ForwardBatch.of_row([tokens[at] for at in (1, 3, 4, 7)] + [5], length + 1), own)
    after = target.forward(ForwardBatch.of_row([5], length + 5), cache)
    assert torch.equal(after.hidden[0, 0], chain.hidden[0, -1])


@torch.inference_mode()
def test_features_are_the_layers_outputs() -> None:
    target, reference = make()
    batch = ForwardBatch.of_row(ids(20), 0)
    got, wanted = (one.forward(batch, one.new_cache(1, 20), (2, 0)).features for one in (target, reference))
    assert got is not None
    assert wanted is not None
    assert (got - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_the_argmax_is_the_first_largest() -> None:
    target, _ = make()
    hidden = torch.randn(21, 96).bfloat16()
    assert torch.equal(target.argmax(hidden), target.logits(hidden).argmax(-1))
    assert target.argmax(torch.zeros(2, 3, 96).bfloat16()).tolist() == [[0] * 3] * 2
    assert target.logits(hidden[:0]).shape == (0, 97)
    for scaled in (hidden, 1e3 * hidden):  # the latter with differences that no float32 exponential holds
        tokens, log_probs = target.native.likeliest(scaled, 5)
        wanted = target.logits(scaled).log_softmax(-1).topk(5)
        assert torch.equal(tokens, wanted.indices)
        assert torch.allclose(log_probs, wanted.values, atol=1e-5)
    tokens, log_probs = target.native.likeliest(torch.zeros(2, 96).bfloat16(), 3)
    assert tokens.tolist() == [[0, 1, 2]] * 2
    assert torch.allclose(log_probs, torch.tensor(-log(97)))


@torch.inference_mode()
def test_of_no_numbers_the_target_tells_no_token_and_the_drafter_one_that_there_is() -> None:
    """The last tile of 97 columns has 15 that are none."""
    target, _ = make()
    hidden = torch.randn(2, 96).bfloat16()
    wanted = target.argmax(hidden)
    hidden[0] = float("nan")
    found = target.argmax(hidden)
    assert found[0] == -1
    assert found[1] == wanted[1]
    tokens, log_probs = target.native.likeliest(hidden, 3)
    assert tokens.max() < 97
    assert log_probs[0].isnan().all()
    assert log_probs[1].isfinite().all()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_greedy_answers_are_the_same_with_any_block(quantization: str | None) -> None:
    target, _ = make(quantization)
    network = draft_network(target)
    native = accelerate_drafter(network, target.head_weight(), quantization)
    drafter = DFlashDrafter(network, target, native)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    prompts = [ids(count) for count in (3, 18, 37, 11)]
    alone = [generate(target, None, prompt, params).token_ids for prompt in prompts]
    drafted = [generate(target, drafter, prompt, params) for prompt in prompts]
    assert [output.token_ids for output in drafted] == alone
    engine = Engine(target, drafter, EngineConfig(page_size=4, num_pages=64, max_step_tokens=24))
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params, (8, 1, 5, 8)[i])
    answers: dict[str, list[int]] = {}
    for output in engine.run():
        answers.setdefault(output.request_id, []).extend(output.token_ids)
    assert [answers[str(i)] for i in range(4)] == alone
    engine.check_integrity()


@torch.inference_mode()
def test_the_drafter_matches_its_modules() -> None:
    target, _ = make()
    network, plain = draft_network(target), draft_network(target).float()
    fast = accelerate_drafter(network, target.head_weight())
    assert fast
    features, block = torch.randn(1, 13, 192).bfloat16(), torch.randn(2, 5, 96).bfloat16()
    positions = torch.arange(13).unsqueeze(0)
    caches = [one.new_cache(2, 24) for one in (network, plain)]
    contexts = fast.context(features, positions), plain.context(features.float(), positions)
    for pairs, cache in zip(contexts, caches, strict=True):
        for layer, (k, v) in zip(cache.layers, pairs, strict=True):
            layer.k[:, :, :13], layer.v[:, :, :13] = k, v
    for layer, wanted in zip(caches[0].layers, caches[1].layers, strict=True):
        assert (layer.k - wanted.k).abs().max() < 0.03 * wanted.k.abs().max()  # in 7 bits; in 8 below 0.02
        assert (layer.v - wanted.v).abs().max() < 0.03 * wanted.v.abs().max()
    starts = torch.tensor([[13], [9]]) + torch.arange(5)
    ends = torch.tensor([16, 14])  # the first row's block is 3 wide, the second's 5
    got = fast.served(block, starts, 18, caches[0], ends=ends)
    wanted = plain.served(block.float(), starts, 18, caches[1], ends=ends)
    got, wanted = (torch.cat((rows[0, :3], rows[1])) for rows in (got, wanted))
    assert (got - wanted).abs().max() < 0.06 * wanted.abs().max()  # in 8 bits
    logits = got.float() @ target.head_weight().float().T
    chosen = logits.gather(-1, fast.native.argmax(got).unsqueeze(-1))
    assert ((logits.amax(-1, keepdim=True) - chosen) < 0.02 * logits.abs().amax()).all()


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{"conv_kernel_size": 2}, {"conv_kernel_size": 3, "conv_group_size": 48}])
def test_convolutions_match_their_modules(changes: dict[str, int]) -> None:
    target, _ = make()
    network, plain = draft_network(target, **changes), draft_network(target, **changes).float()
    lib, head = library(), (target.head_weight(), Kind.BF16)
    assert lib
    fast = NativeDrafter(network, DrafterDecoder(lib, network, network.rotary, 64, Kind.BF16, head))
    features, block = torch.randn(2, 13, 192).bfloat16(), torch.randn(2, 5, 96).bfloat16()
    positions, found = torch.arange(13, 18).expand(2, -1), []
    for form, dtype in ((fast, torch.bfloat16), (network, torch.bfloat16), (plain, torch.float32)):
        cache = (plain if form is plain else network).new_cache(2, 24)
        pairs = form.context(features.to(dtype), torch.arange(13).expand(2, -1))
        for layer, (k, v) in zip(cache.layers, pairs, strict=True):
            layer.k[:, :, :13], layer.v[:, :, :13] = k, v
        found.append(form.served(block.to(dtype), positions, 18, cache).float())
    ours, modules = ((one - found[2]).abs().max() / found[2].abs().max() for one in found[:2])
    assert ours < min(modules, 0.05)  # the modules round to bfloat16 more often


@torch.inference_mode()
def test_a_block_with_convolutions_has_the_bits_of_each_alone() -> None:
    """And the selector drafts what its modules draft from the same hidden states."""
    target, _ = make()
    network = draft_network(target, **DFLASH2)
    fast = accelerate_drafter(network, target.head_weight())
    assert fast
    features, drafter = torch.randn(2, 13, 192).bfloat16(), DFlashDrafter(network, target, fast)
    blocks, cache = drafter.blocks([3, 4], 8), network.new_cache(2, 24)
    pairs = fast.context(features, torch.arange(13).expand(2, -1))
    for layer, (k, v) in zip(cache.layers, pairs, strict=True):
        layer.k[:, :, :13], layer.v[:, :, :13] = k, v
    positions = torch.arange(13, 21).expand(2, -1)
    together = drafter.hidden(blocks, positions, 21, cache)
    drafts = drafter.candidates(blocks, positions, 21, cache, with_pairs=True).walk()
    for threads in (1, 2):
        fast.native.num_threads = threads
        for row in range(2):
            own = network.new_cache(1, 24)
            for layer, whole in zip(own.layers, cache.layers, strict=True):
                layer.k[0], layer.v[0] = whole.k[row], whole.v[row]
            one = slice(row, row + 1)
            assert torch.equal(drafter.hidden(blocks[one], positions[one], 21, own), together[one])
    again = candidates_of(network, target, together, blocks[:, 0], 1).walk()
    assert (again.token_ids == drafts.token_ids).float().mean() > 0.8  # the head in 8 bits


def windowed(target: TargetModel, **changes: object) -> DFlashModel:
    """A drafter whose first layer sees all and whose second sees 16 tokens before the anchor."""
    network, kinds = draft_network(target), ("full_attention", "sliding_attention")
    wanted = {"layer_types": kinds, "sliding_window": 16, "is_causal": False, "window_from_anchor": True}
    network.config = replace(network.config, **{**wanted, **changes})
    return network


@torch.inference_mode()
def test_a_drafters_window_is_that_of_its_modules_and_what_lies_before_it_is_not_read() -> None:
    target, _ = make()
    network, plain = windowed(target), windowed(target).float()
    fast = accelerate_drafter(network, target.head_weight())
    assert fast
    starts = torch.tensor([3, 15, 16, 17, 33, 50])  # below the window, at it, behind it
    block, kv_len = torch.randn(6, 5, 96).bfloat16(), 55
    positions, ends = starts.unsqueeze(1) + torch.arange(5), starts + torch.tensor([5, 2, 5, 5, 3, 5])
    caches = [one.new_cache(6, 64) for one in (network, plain)]
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        for name in ("k", "v"):
            values = torch.randn(layers[0].k.shape).bfloat16()
            getattr(layers[0], name).copy_(values)
            getattr(layers[1], name).copy_(values)
    wanted = plain.served(block.float(), positions, kv_len, caches[1], ends=ends)
    for row, start in enumerate(starts.tolist()):
        caches[0].layers[1].k[row, :, : max(start - 16, 0)] = torch.nan
        caches[0].layers[1].v[row, :, : max(start - 16, 0)] = torch.nan
    got = fast.served(block, positions, kv_len, caches[0], ends=ends)
    for row in range(6):
        width = int(ends[row] - starts[row])
        difference = (got[row, :width] - wanted[row, :width]).abs().max()
        assert difference < 0.06 * wanted[row, :width].abs().max()  # in 8 bits
        alone = network.new_cache(1, 64)
        for mine, layer in zip(alone.layers, caches[0].layers, strict=True):
            mine.k.copy_(layer.k[row : row + 1])
            mine.v.copy_(layer.v[row : row + 1])
        own = fast.served(
            block[row : row + 1], positions[row : row + 1], kv_len, alone, ends=ends[row : row + 1]
        )
        assert torch.equal(own[0, :width], got[row, :width])
    whole, network.config = network.config, replace(network.config, layer_types=None, sliding_window=None)
    unseen = fast.served(block, positions, kv_len, caches[0], ends=ends)
    assert torch.equal(unseen[:3], got[:3])  # not beyond the window: the very bits of a drafter without one
    is_of_block = positions < ends.unsqueeze(1)
    is_of_block[:3] = False
    assert unseen[is_of_block].isnan().any(-1).all()
    network.config = replace(whole, sliding_window=17)
    assert fast.served(block, positions, kv_len, caches[0], ends=ends)[is_of_block].isnan().any(-1).all()


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{"window_from_anchor": False}, {"is_causal": True}])
def test_slots_that_see_different_keys_stay_with_the_modules(changes: dict[str, object]) -> None:
    target, _ = make()
    network = windowed(target, **changes)
    fast = accelerate_drafter(network, target.head_weight())
    assert fast
    block, positions = torch.randn(1, 5, 96).bfloat16(), torch.arange(30, 35).unsqueeze(0)
    cache = network.new_cache(1, 35)
    got = fast.served(block, positions, 35, cache)
    assert torch.equal(network.served(block, positions, 35, cache), got)


def test_a_window_drafts_in_the_engine_what_it_drafts_alone_and_what_its_modules_draft() -> None:
    target, _ = make(vocab_size=11)  # random drafts are right now and then
    network = windowed(target)
    fast = accelerate_drafter(network, target.head_weight())
    drafters = [DFlashDrafter(network, target, native) for native in (fast, None)]
    engine = Engine(target, drafters[0], EngineConfig(page_size=4, num_pages=96))
    params = SamplingParams(temperature=1, seed=0, max_tokens=40, ignore_eos=True)
    prompts = [[token % 11 for token in ids(count)] for count in (5, 16, 29, 60)]
    for i, prompt in enumerate(prompts):
        engine.add_request(str(i), prompt, params, 8 - i % 2)
    last = {output.request_id: output for output in engine.run()}
    for i, prompt in enumerate(prompts):
        alone = generate(target, drafters[0], prompt, params, 8 - i % 2)
        assert last[str(i)].metrics.accepted_histogram == alone.metrics.accepted_histogram
    assert engine.metrics.num_accepted > 5
    same = [drafts_of(drafter, target, [*prompts[3], *ids(9)]) for drafter in drafters]
    assert (same[0] == same[1]).float().mean() > 0.9  # in 8 bits: near-ties go the other way


@torch.inference_mode()
def drafts_of(drafter: DFlashDrafter, target: TargetModel, tokens: list[int]) -> Tensor:
    """A block drafted behind every token, [len(tokens), 7]."""
    tokens = [token % 11 for token in tokens]
    state, cache = Alone(drafter, len(tokens)), target.new_cache(1, len(tokens))
    features = target.forward(ForwardBatch.of_row(tokens, 0), cache, drafter.feature_layers).features
    assert features is not None
    drafted = []
    for at, token in enumerate(tokens):
        drafted.append(state.chain(token, 7))
        state.observe([token], features[:, at : at + 1])
    return torch.tensor(drafted)


def test_what_it_does_not_know_stays_with_the_modules() -> None:
    for target in (toy_target(), toy_target(**SHAPE, attention_bias=True).bfloat16()):  # float32; biases
        assert accelerate(target) is target
    odd = toy_target().bfloat16()  # heads of 12
    assert accelerate(odd) is odd
    with pytest.raises(UsageError, match=r"int8 .* multiples of 32"):
        accelerate(odd, "int8")
    with pytest.raises(UsageError, match="expected int8 or int4"):
        accelerate(odd, "int3")


def test_without_a_compiler_there_is_one_line_of_notice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    library_file._library.cache_clear()
    try:
        assert library() is None
        assert library() is None
    finally:
        library_file._library.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "plain PyTorch is used instead of the fast CPU path: there is no C++ compiler (Debian, Ubuntu:"
        " apt-get install g++)"
    ]
