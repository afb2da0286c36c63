"""A stack of decoder layers, and a head, as the C++ part runs them. Its values are a copy: for frozen weights."""

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from flashdraft.batch import TreeSlots
from flashdraft.cache.stored_layer import PageTable, StoredLayer
from flashdraft.native.library import BatchStruct, DecoderStruct, KVStruct, LayerStruct, LinearStruct
from flashdraft.native.packing import Kind, PackedWeights
from flashdraft.native.selector import NativeSelector
from flashdraft.ops.stored import StoredLinear

_POSITIONS_AT_A_TIME = 4096
_LANES = 16  # floats of a vector


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """For what runs between C++ calls: PyTorch's idle threads spin, on the very cores that the team of those needs."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def why_unsupported(layers: Iterable[nn.Module], head_dim: int) -> str | None:
    """What of these layers the C++ part does not know, or None."""
    layers = list(layers)
    if any(getattr(conv, "group_size", 16) % _LANES for layer in layers for conv in _convs(layer)):
        return "its convolutions' groups are not multiples of 16"
    convs = {conv.kernel_projection for layer in layers for conv in _convs(layer)}
    kinds = nn.Linear | StoredLinear
    linears = [m for layer in layers for m in layer.modules() if isinstance(m, kinds) and m not in convs]
    if any(linear.bias is not None for linear in linears):
        return "its layers have biases"
    if any(linear.in_features % 32 or linear.out_features % 32 for linear in linears) or head_dim % 32:
        return "its sizes are not multiples of 32"
    return None


class NativeDecoder:
    """Layers shaped as LlamaLayer with their final norm, run in one call.

    ``model`` has them as ``layers`` and ``norm``; ``head``: the output head; ``others``: more matrices to pack.
    ``num_threads``: of its calls, from the start as many as PyTorch has.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        model: Any,
        rotary: Any,
        head_dim: int,
        kind: Kind,
        head: tuple[Tensor, Kind],
        others: Sequence[Tensor] = (),
    ) -> None:
        self._library, self._rotary, self._head_dim = library, rotary, head_dim
        self.num_threads = torch.get_num_threads()
        matrices = (one for layer in model.layers for one in _matrices(layer, kind))
        self.packed = PackedWeights(chain(matrices, [head], ((weight, kind) for weight in others)))
        self.head, *self.others = self.packed.linears[len(self.packed.linears) - 1 - len(others) :]
        self._kept: list[Tensor] = []  # what the structs point to
        linears = iter(self.packed.linears)
        structs = [
            LayerStruct(
                *(next(linears) for _ in range(4)),
                *([next(linears) for _ in _convs(layer)] or [LinearStruct(), LinearStruct()]),
                *map(self._float, [*_norms(layer), *(conv.base_kernel for conv in _convs(layer))]),
            )
            for layer in model.layers
        ]
        self._layers = (LayerStruct * len(structs))(*structs)
        self._num_positions = 0
        attention, mlp = model.layers[0].self_attn, model.layers[0].mlp
        self.num_kv_heads = attention.k_proj.out_features // head_dim
        self._struct = DecoderStruct(
            layers=ctypes.addressof(self._layers),
            final_norm=self._float(model.norm.weight),
            num_layers=len(structs),
            hidden_size=attention.q_proj.in_features,
            num_heads=attention.q_proj.out_features // head_dim,
            num_kv_heads=self.num_kv_heads,
            head_dim=head_dim,
            intermediate_size=mlp.gate_proj.out_features,
            **_conv_shape(model.layers[0]),
            eps=model.norm.eps,
        )

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        kv_len: int,
        stored: Sequence[StoredLayer],
        feature_layers: Sequence[int] = (),
        tree: TreeSlots | None = None,
        windows: Sequence[int] = (),
        ends: Tensor | None = None,
        is_causal: bool = True,
        token_ids: Tensor | None = None,
        best: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Final hidden states [rows, num_tokens, hidden_size] and the joined ``feature_layers``, bfloat16.

        ``x`` [rows, num_tokens, hidden_size] bfloat16; its tokens stand at ``positions`` [rows, num_tokens], below
        ``kv_len``. Feature layer -1 is the output of the final norm. ``tree``: where the tokens lie if not in the
        slots of their positions. ``windows``: for each layer, how many positions before a row's first token its
        tokens see; 0, or none given: all. Not for trees. ``ends`` [rows]: the slot behind a row's last token; what
        is not below it is not computed, and what comes out for it means nothing. ``is_causal``: whether a token sees
        its row up to itself, or all of it. ``token_ids`` [rows, num_tokens]: which rows of ``x``, an embedding
        [vocab_size, hidden_size] then. ``best`` int64 [rows, num_tokens] takes what :meth:`argmax` says of each token.
        """
        assert not (tree and windows), "a tree's paths are counted from the first position"
        (rows, width), size = positions.shape, x.shape[-1]
        x, ids = x.contiguous(), None if token_ids is None else token_ids.contiguous()
        hidden = x.new_zeros(rows, width, size)
        features = x.new_empty(rows, width, len(feature_layers) * size) if feature_layers else None
        wanted = (ctypes.c_int64 * len(feature_layers))(*feature_layers)
        slots, paths = (tree.slots, tree.paths) if tree else (positions, None)
        kv = _storage(stored, stored[0].table)
        batch = _Batch(positions, slots, kv, ends, paths, windows, is_causal)
        self._need(kv_len)
        given = (
            self._struct,
            batch.struct,
            x.data_ptr(),
            None if ids is None else ids.data_ptr(),
            hidden.data_ptr(),
            None if features is None else features.data_ptr(),
            wanted,
            len(feature_layers),
        )
        if best is None:
            self._library.decoder_forward(*given, self.num_threads)
        else:
            self._library.decoder_greedy(*given, self.head, best.data_ptr(), self.num_threads)
        return hidden, features

    def argmax(self, hidden: Tensor) -> Tensor:
        """The first largest of the head's outputs, int64 [...], of final hidden states [..., hidden_size] bfloat16.

        -1 where it is no finite number.
        """
        head, rows = self.head, hidden.reshape(-1, hidden.shape[-1]).contiguous()
        best = torch.empty(len(rows), dtype=torch.long)
        self._library.linear_argmax(head, rows.data_ptr(), len(rows), best.data_ptr(), self.num_threads)
        return best.view(hidden.shape[:-1])

    def likeliest(self, hidden: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` largest of the head's outputs, or all, the largest first, of equal ones the first.

        Int64 [..., count] of final hidden states [..., hidden_size] bfloat16; with each its log-probability, float32.
        """
        head, rows = self.head, hidden.reshape(-1, hidden.shape[-1]).contiguous()
        count = min(count, head.n)
        best, log_probs = torch.empty(len(rows), count, dtype=torch.long), torch.empty(len(rows), count)
        self._library.linear_likeliest(
            head, rows.data_ptr(), len(rows), count, best.data_ptr(), log_probs.data_ptr(), self.num_threads
        )
        shape = *hidden.shape[:-1], count
        return best.view(shape), log_probs.view(shape)

    def _float(self, weight: Tensor | None) -> int | None:
        """Where a float32 copy of ``weight`` lies."""
        if weight is None:
            return None
        self._kept.append(weight.detach().float().contiguous())
        return self._kept[-1].data_ptr()

    def _need(self, num_positions: int) -> None:
        """RoPE's tables, made as far as they are needed."""
        if num_positions <= self._num_positions:
            return
        self._num_positions = -(-num_positions // _POSITIONS_AT_A_TIME) * _POSITIONS_AT_A_TIME
        cos, sin = self._rotary(torch.arange(self._num_positions).unsqueeze(0), torch.float32)
        half = self._head_dim // 2
        self._tables = (cos[0, 0, :, :half].contiguous(), sin[0, 0, :, :half].contiguous())
        self._struct.cos, self._struct.sin = (table.data_ptr() for table in self._tables)


class TargetDecoder(NativeDecoder):
    """A target's layers and its head."""

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., vocab_size] of final hidden states [..., hidden_size] bfloat16."""
        head, rows = self.head, hidden.reshape(-1, hidden.shape[-1]).contiguous()
        out = torch.empty(len(rows), head.n, dtype=torch.float32)
        self._library.linear(head, rows.data_ptr(), len(rows), out.data_ptr(), self.num_threads)
        return out.view(*hidden.shape[:-1], head.n)


class DrafterDecoder(NativeDecoder):
    """A DFlash network's layers with the head that it drafts through, and its projection of features."""

    def __init__(
        self,
        library: ctypes.CDLL,
        model: Any,
        rotary: Any,
        head_dim: int,
        kind: Kind,
        head: tuple[Tensor, Kind],
    ) -> None:
        super().__init__(library, model, rotary, head_dim, kind, head, [model.fc.weight])
        self._hidden_norm = self._float(model.hidden_norm.weight)
        frozen = model.candidate_selector and model.candidate_selector.frozen
        self.selector = NativeSelector(library, frozen) if frozen else None

    def draft(
        self,
        x: Tensor,
        positions: Tensor,
        kv_len: int,
        stored: Sequence[StoredLayer],
        windows: Sequence[int],
        ends: Tensor | None,
        tokens: Tensor | None,
        count: int,
        anchors: Tensor | None = None,
        num_ranks: int = 0,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """:meth:`likeliest` of blocks' slots behind their anchors, [rows, num_tokens - 1, count] both.

        In one call with their :meth:`forward`. Zeros where a row has no token. ``tokens``: the token of each output
        of the head, int64, if that is not its number. ``anchors`` int64 [rows]: where there is a selector, for what
        it says then: the log-probabilities of the ``num_ranks`` likeliest candidates behind each one of the slot
        before, best first, and which ones they are, [rows, num_tokens - 1, count, num_ranks] both.
        """
        x, (rows, width) = x.contiguous(), positions.shape
        count = min(count, self.head.n)
        best = torch.zeros(rows, width - 1, count, dtype=torch.long)
        log_probs = torch.zeros(rows, width - 1, count)
        behind = selecting = None
        if self.selector and anchors is not None:
            num_ranks = min(num_ranks, count)
            anchors, shape = anchors.contiguous(), (*best.shape, num_ranks)
            behind = torch.empty(shape), torch.empty(shape, dtype=torch.long)
            selecting = (
                self.selector.struct,
                anchors.data_ptr(),
                num_ranks,
                *(one.data_ptr() for one in behind),
            )
        kv = _storage(stored, stored[0].table)
        batch = _Batch(positions, positions, kv, ends, None, windows, False)
        self._need(kv_len)
        self._library.decoder_draft(
            self._struct,
            batch.struct,
            x.data_ptr(),
            self.head,
            None if tokens is None else tokens.data_ptr(),
            count,
            best.data_ptr(),
            log_probs.data_ptr(),
            *(selecting or (None, None, 0, None, None)),
            self.num_threads,
        )
        return best, log_probs, behind

    def context(self, features: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values of verified tokens, [batch, kv_heads, num_tokens, head_dim].

        ``features`` [batch, num_tokens, feature_size] bfloat16, ``positions`` [batch, num_tokens].
        """
        batch_size, num_tokens = positions.shape
        shape = (len(self._layers), 2, batch_size, num_tokens, self.num_kv_heads, self._head_dim)
        out = features.new_empty(shape)
        slots = torch.arange(num_tokens).expand_as(positions)
        self.store_context(
            features, positions, slots, [_Made(layer) for layer in out], int(positions.max()) + 1
        )
        return [(layer[0].transpose(1, 2), layer[1].transpose(1, 2)) for layer in out]

    def store_context(
        self, features: Tensor, positions: Tensor, slots: Tensor, stored: Sequence[StoredLayer], kv_len: int
    ) -> None:
        """The same, put into ``slots`` [batch, num_tokens] of ``stored``, which are no pages' but the storage's own.

        ``positions`` are below ``kv_len``.
        """
        features, batch = features.contiguous(), _Batch(positions, slots, _storage(stored, None))
        self._need(kv_len)
        self._library.decoder_context(
            self._struct,
            batch.struct,
            *self.others,
            self._hidden_norm,
            features.data_ptr(),
            self.num_threads,
        )


def _storage(layers: Sequence[StoredLayer], table: PageTable | None) -> KVStruct:
    """``KVStorage`` of attention.h, for as long as ``layers`` and ``table`` are there."""
    k, v, token_dim = layers[0].k, layers[0].v, layers[0].token_dim
    keys, last, strides = k.data_ptr(), layers[-1].k.data_ptr(), k.stride()
    return KVStruct(
        keys,
        v.data_ptr(),
        (last - keys) // k.element_size() // max(len(layers) - 1, 1),
        strides[0],
        strides[token_dim],
        strides[3 - token_dim],
        *(table.pages.buffer_info()[0], table.width, table.page_size) if table else (),
    )


class _Batch:
    """``Batch`` of decoder.h, with the tensors that it points into."""

    def __init__(
        self,
        positions: Tensor,
        slots: Tensor,
        kv: KVStruct,
        ends: Tensor | None = None,
        paths: Tensor | None = None,
        windows: Sequence[int] = (),
        is_causal: bool = True,
    ) -> None:
        self.kept = positions.contiguous(), slots.contiguous()
        self.ends = ends
        self.paths = None if paths is None else paths.contiguous()
        self.windows = (ctypes.c_int64 * len(windows))(*windows)
        self.struct = BatchStruct(
            *positions.shape,
            is_causal,
            *(tensor.data_ptr() for tensor in self.kept),
            None if ends is None else ends.data_ptr(),
            None if self.paths is None else self.paths.data_ptr(),
            0 if self.paths is None else self.paths.shape[-1],
            ctypes.addressof(self.windows) if windows else None,
            kv,
        )


class _Made:
    """Keys and values [2, rows, num_tokens, kv_heads, head_dim] that are wanted for themselves."""

    token_dim = 1
    table: PageTable | None = None

    def __init__(self, both: Tensor) -> None:
        self.k, self.v = both


def _matrices(layer: Any, kind: Kind) -> Iterator[tuple[Tensor, Kind]]:
    """One at a time: they may be copies, or read from files."""
    attention, mlp = layer.self_attn, layer.mlp
    yield torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)), kind
    yield attention.o_proj.weight, kind
    yield torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)), kind
    yield mlp.down_proj.weight, kind
    for conv in _convs(layer):  # small, and what their inputs are mixed by
        yield conv.kernel_projection.weight, Kind.BF16


def _norms(layer: Any) -> list[Tensor | None]:
    attention = layer.self_attn
    heads = [getattr(norm, "weight", None) for norm in (attention.q_norm, attention.k_norm)]
    return [layer.input_layernorm.weight, layer.post_attention_layernorm.weight, *heads]


def _convs(layer: Any) -> list[Any]:
    """DFlash 2's convolutions around attention and MLP, if it has them."""
    return [getattr(layer, name) for name in ("attention_conv", "mlp_conv") if hasattr(layer, name)]


def _conv_shape(layer: Any) -> dict[str, int]:
    """What of the decoder's struct is theirs."""
    if not (convs := _convs(layer)):
        return {}
    num_kernels = convs[0].kernel_projection.out_features
    return {
        "num_taps": convs[0].num_taps,
        "group_size": convs[0].group_size,
        "num_kernels": num_kernels + -num_kernels % _LANES,
    }
