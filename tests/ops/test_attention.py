"""Attention with what a layer's spec says, against transformers' own forms of it."""

import types

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as capped
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as with_sinks

from flashdraft.batch import ForwardBatch
from flashdraft.cache.kv_cache import KVCache, KVShape
from flashdraft.models.base import LayerSource, OwnTokens
from flashdraft.ops.attention import CAUSAL, AttentionSpec, LastKeys, attention

ROWS, HEADS, KV_HEADS, LEN, HEAD_DIM = 2, 4, 2, 9, 8


def inputs(num_tokens: int = LEN) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    shapes = [(ROWS, HEADS, num_tokens, HEAD_DIM), *[(ROWS, KV_HEADS, LEN, HEAD_DIM)] * 2]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def theirs(form, q, k, v, mask: torch.Tensor, **options) -> torch.Tensor:
    module = types.SimpleNamespace(
        num_key_value_groups=HEADS // KV_HEADS,
        training=False,
        head_dim=HEAD_DIM,
        sinks=options.pop("sinks", None),
    )
    bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf")).unsqueeze(1)
    options.setdefault("scaling", HEAD_DIM**-0.5)
    return form(module, q, k, v, bias, **options)[0].transpose(1, 2)


@pytest.mark.parametrize("scale", [None, 0.2])
def test_scale_sinks_and_softcap_equal_transformers(scale) -> None:
    q, k, v = inputs()
    causal = torch.ones(1, LEN, LEN, dtype=torch.bool).tril()
    scaling = {} if scale is None else {"scaling": scale}
    sinks = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    for mask in (CAUSAL, causal):
        plain = attention(q, k, v, mask, AttentionSpec(scale=scale))
        none = torch.full((HEADS,), float("-inf"))
        torch.testing.assert_close(plain, theirs(with_sinks, q, k, v, causal, sinks=none, **scaling))
        sunk = attention(q, k, v, mask, AttentionSpec(scale=scale, sinks=sinks))
        torch.testing.assert_close(sunk, theirs(with_sinks, q, k, v, causal, sinks=sinks, **scaling))
        assert (sunk - plain).abs().max() > 0.1
        low = attention(q, k, v, mask, AttentionSpec(scale=scale, softcap=0.5))
        torch.testing.assert_close(low, theirs(capped, q, k, v, causal, softcap=0.5, **scaling))
        assert (low - plain).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_knows_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form of training on CUDA, which is compiled there."""
    monkeypatch.setattr("flashdraft.ops.attention._compiled_flex", lambda: flex_attention)
    q, k, v = inputs()
    mask = create_block_mask(lambda _row, _head, query, key: query >= key, None, None, LEN, LEN, device="cpu")
    sinks = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    causal = torch.ones(1, LEN, LEN, dtype=torch.bool).tril()
    found = attention(q, k, v, mask, AttentionSpec(sinks=sinks))
    torch.testing.assert_close(found, theirs(with_sinks, q, k, v, causal, sinks=sinks))


def test_served_forms_of_a_mask_know_sinks() -> None:
    q, k, v = inputs(1)
    spec = AttentionSpec(sinks=torch.ones(HEADS))
    lengths = torch.tensor([3, 9])
    seen = torch.arange(LEN) < lengths[:, None, None]
    wanted = theirs(with_sinks, q, k, v, seen, sinks=torch.ones(HEADS))
    torch.testing.assert_close(attention(q, k, v, seen, spec), wanted)
    late = seen & (torch.arange(LEN) >= 2)
    wanted = theirs(with_sinks, q, k, v, late, sinks=torch.ones(HEADS))
    torch.testing.assert_close(attention(q, k, v, LastKeys(seen[..., 2:], 2), spec), wanted)


def test_a_cache_attends_in_pieces_as_whole_texts_do() -> None:
    """Each layer within its own window, with its own sinks; the last piece is a tree's two guesses side by side."""
    specs = [AttentionSpec(), AttentionSpec(window=4), AttentionSpec(window=3, sinks=torch.ones(HEADS))]
    q, k, v = (x[:1] for x in inputs())
    cache = KVCache([KVShape(KV_HEADS, HEAD_DIM)] * len(specs), 1, LEN + 1, torch.float32, "cpu")
    whole = OwnTokens().open(ForwardBatch.of_row([0] * LEN, 0), specs)
    wanted = [source.attend(q, k, v) for source in whole]
    assert (wanted[0] - wanted[1]).abs().max() > 0.1
    found: list[list[torch.Tensor]] = [[] for _ in specs]
    for start, end in ((0, 5), (5, 6), (6, 8)):
        for layer, source in enumerate(cache.open(ForwardBatch.of_row([0] * (end - start), start), specs)):
            found[layer].append(source.attend(*(x[:, :, start:end] for x in (q, k, v))))
        cache.commit(end - start)
    # Token 8 stands beside another guess at its position, which it does not see.
    pair = torch.tensor([7, 8])
    cache.lengths[0] = 7
    tree = ForwardBatch.of_row([0, 0, 0], 7, parents=[0, 0])
    other, both = torch.full((1, KV_HEADS, 1, HEAD_DIM), 9.0), (k[:, :, pair], v[:, :, pair])
    staged = [torch.cat((x[:, :, :1], other, x[:, :, 1:]), dim=2) for x in both]
    query = torch.cat((q[:, :, 7:8], q[:, :, :1], q[:, :, 8:9]), dim=2)
    for layer, source in enumerate(cache.open(tree, specs)):
        found[layer].append(source.attend(query, *staged)[:, :, 2:])
    for pieces, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.cat(pieces, dim=2), expected)


def test_layers_of_other_sizes_keep_their_own_and_one_reads_anothers() -> None:
    """Own heads and head sizes; the last layer attends to the first one's. What a tree's path moves, it moves once."""
    specs = [AttentionSpec(), AttentionSpec(window=3), AttentionSpec(shares=0)]
    shapes = [KVShape(2, 8), KVShape(1, 16, 3), KVShape(2, 8, shares=0)]
    cache = KVCache(shapes, 1, LEN, torch.float32, "cpu")
    torch.manual_seed(3)
    sizes = [(1, shape.kv_heads, LEN, shape.head_dim) for shape in shapes]
    brought = [(torch.randn(size), torch.randn(size)) for size in sizes[:2]]
    queries = [torch.randn(1, 4, LEN, shape.head_dim) for shape in shapes]

    def attend(source: LayerSource, layer: int, places: list[int]) -> torch.Tensor:
        k, v = (x[:, :, places] for x in brought[layer]) if layer < 2 else (None, None)
        return source.attend(queries[layer][:, :, places], k, v)

    whole = OwnTokens().open(ForwardBatch.of_row([0] * LEN, 0), specs)
    wanted = [attend(source, layer, list(range(LEN))) for layer, source in enumerate(whole)]
    for layer, source in enumerate(cache.open(ForwardBatch.of_row([0] * 5, 0), specs)):
        torch.testing.assert_close(attend(source, layer, list(range(5))), wanted[layer][:, :, :5])
    cache.commit(5)
    # A guess beside token 6, which the path 5, 6 leaves out.
    tree = ForwardBatch.of_row([0, 0, 0], 5, parents=[0, 0])
    for layer, source in enumerate(cache.open(tree, specs)):
        found = attend(source, layer, [5, 0, 6])
        torch.testing.assert_close(found[:, :, [0, 2]], wanted[layer][:, :, 5:7])
    cache.commit_path([0, 2])
    for layer, source in enumerate(cache.open(ForwardBatch.of_row([0], 7), specs)):
        torch.testing.assert_close(attend(source, layer, [7]), wanted[layer][:, :, 7:8])
    assert cache.layers[2] is cache.layers[0]
