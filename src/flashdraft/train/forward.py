"""The drafter's forward on packed rows: what serving does block by block, for many blocks at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.data.loader import PackedRows
from flashdraft.models.base import OwnTokens, TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.ops.block_mask import BlockContextMask, DocumentMask, fast_mask
from flashdraft.train.anchors import Blocks


class ContextKV:
    """Keys and values of the row's tokens; a layer's blocks are put behind them."""

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    def stage(self, k: Tensor, v: Tensor, positions: Tensor, kv_len: int) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """[context | blocks] along the tokens."""
        return torch.cat((self.k, k), dim=2), torch.cat((self.v, v), dim=2)


@torch.no_grad()
def target_features(target: TargetModel, rows: PackedRows, layers: Sequence[int]) -> Tensor:
    """Features [num_rows, seq_len, len(layers) * hidden_size] of packed documents that do not see each other."""
    own = OwnTokens(target.config.num_hidden_layers, fast_mask(DocumentMask(rows.doc_start), target.device))
    features = target.forward(ForwardBatch(rows.token_ids, _positions(rows), 0), own, layers).features
    assert features is not None
    return features


def block_hidden(
    target: TargetModel, drafter: DFlashModel, rows: PackedRows, features: Tensor, blocks: Blocks
) -> Tensor:
    """Final hidden states of every slot, [num_rows, num_blocks, block_size, hidden_size].

    Each block sees the features of its document strictly before its anchor, and itself.
    """
    num_rows, num_blocks, block_size = blocks.labels.shape
    slots = torch.full_like(blocks.labels, drafter.config.mask_token_id)
    slots[:, :, 0] = rows.token_ids.gather(1, blocks.anchors)
    in_document = (blocks.anchors - blocks.doc_start).unsqueeze(-1)
    positions = (in_document + torch.arange(block_size, device=slots.device)).flatten(1)
    seq_len = rows.token_ids.shape[1]
    rules = drafter.config.rules()
    made = {
        rule: fast_mask(
            BlockContextMask(blocks.anchors, blocks.doc_start, seq_len, block_size, rule), target.device
        )
        for rule in set(rules)
    }
    masks = [made[rule] for rule in rules]
    sources = [ContextKV(k, v) for k, v in drafter.context(features, _positions(rows))]
    hidden: Tensor = drafter(target.embed(slots.flatten(1)), positions, 0, sources, masks)
    return hidden.view(num_rows, num_blocks, block_size, -1)


def _positions(rows: PackedRows) -> Tensor:
    return torch.arange(rows.token_ids.shape[1], device=rows.token_ids.device) - rows.doc_start
