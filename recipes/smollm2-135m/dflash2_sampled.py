"""Expected acceptance length of sampled answers, reckoned: what serving would take on average over its draws.

At every anchor of an answer at temperature 1 the probability that each slot's token is drafted and kept follows from
the target's distribution p and the drafter's q over its candidates (the rules of benchmarks/draft_sampling.py). A
round that begins there ends behind each slot with what these make; so the rounds of a whole answer follow one by one.
"""

import torch
from torch import Tensor

from flashdraft.data.loader import PackedRows
from flashdraft.models.base import FINAL_HIDDEN, TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.spec_decode.candidates import candidates_of
from flashdraft.train.anchors import Blocks, blocks_at
from flashdraft.train.forward import block_hidden, context_entries, target_features
from flashdraft.train.simulate import answers_of

SCALES = (1.0, 1.2)  # of the drafter's scores, 1 over a temperature of its own
RULES = tuple(f"{rule}, {scale}" for scale in SCALES for rule in ("noise", "rejection"))
NUM_CANDIDATES = 16
BLOCKS_AT_ONCE = 256  # of a row, whose distributions are there together


def sampled_lengths(
    target: TargetModel, drafter: DFlashModel, rows: PackedRows, sizes: tuple[int, int, int]
) -> dict[str, float]:
    """Of each rule tokens a round, over all answers of ``rows``.

    ``sizes``: tokens of a block, rows and blocks of a row of a forward.
    """
    block_size, rows_per_forward, blocks_per_forward = sizes
    num_tokens, num_rounds = 0, dict.fromkeys(RULES, 0.0)
    for first in range(0, len(rows), rows_per_forward):
        index = torch.arange(first, first + rows_per_forward, device=rows.token_ids.device)
        part, num_real = (
            rows.rows(torch.where(index < len(rows), index, first)),
            min(rows_per_forward, len(rows) - first),
        )
        every = chances_at_anchors(target, drafter, part, num_real, block_size, blocks_per_forward)
        for row in range(num_real):
            for begin, end in answers_of(part.is_anchor[row].tolist()):
                num_tokens += end - begin
                for rule in RULES:
                    num_rounds[rule] += expected_rounds(every[rule][row, begin:end])
    return {rule: round(num_tokens / max(count, 1e-9), 4) for rule, count in num_rounds.items()}


def expected_rounds(chances: Tensor) -> float:
    """Rounds of an answer whose block at anchor i has slot k kept with ``chances[i, k]``, all before it being kept."""
    count = len(chances)
    reached = torch.cat((torch.ones(count, 1), chances.cumprod(-1)), 1)
    ends = reached - torch.nn.functional.pad(reached[:, 1:], (0, 1))
    begins = [1.0] + [0.0] * (count + ends.shape[1])
    for place, row in enumerate(ends.tolist()):
        for num_accepted, chance in enumerate(row):
            begins[place + num_accepted + 1] += begins[place] * chance
    return sum(begins[:count])


@torch.no_grad()
def chances_at_anchors(
    target: TargetModel,
    drafter: DFlashModel,
    rows: PackedRows,
    num_real: int,
    block_size: int,
    blocks_per_forward: int,
) -> dict[str, Tensor]:
    """Of each rule the chances [num_rows, seq_len, block_size - 1], on the CPU, at all anchors of the first rows.

    Rows behind ``num_real`` are there for the shape alone.
    """
    layers = drafter.config.target_layer_ids
    width = len(layers) * target.config.hidden_size
    every = target_features(target, rows, (*layers, FINAL_HIDDEN))
    features, final = every[..., :width].contiguous(), every[..., width:]
    context = context_entries(target, drafter, rows, features)
    found = {rule: torch.zeros(*rows.token_ids.shape, block_size - 1) for rule in RULES}
    counts = rows.is_anchor.cumsum(-1)
    for first in range(0, int(counts.max()), blocks_per_forward):
        rank = torch.arange(first, first + blocks_per_forward, device=counts.device).expand(len(counts), -1)
        is_valid = rank < counts[:, -1:]
        places = torch.searchsorted(counts, rank.contiguous() + 1).clamp(max=counts.shape[1] - 1)
        blocks = blocks_at(rows, places, is_valid, block_size)
        hidden = block_hidden(target, drafter, rows, features, blocks, context)
        for row in range(num_real):
            for begin in range(0, blocks_per_forward, BLOCKS_AT_ONCE):
                part = slice(begin, begin + BLOCKS_AT_ONCE)
                if not is_valid[row, begin]:
                    break
                own = blocks.rows(slice(row, row + 1))
                some = Blocks(*(t[0, part] for t in (own.anchors, own.doc_start, own.labels, own.has_label)))
                made = _chances(target, drafter, hidden[row, part, 1:].contiguous(), some, final[row])
                valid = is_valid[row, part].cpu()
                for rule, chances in made.items():
                    found[rule][row, places[row, part].cpu()[valid]] = chances.float().cpu()[valid]
    return found


def _chances(
    target: TargetModel, drafter: DFlashModel, hidden: Tensor, blocks: Blocks, final: Tensor
) -> dict[str, Tensor]:
    """Of some blocks of a row, [num_blocks, block_size - 1]; ``final`` [seq_len, hidden_size] are the target's."""
    texts, has_label = blocks.labels, blocks.has_label[:, 1:]
    found = candidates_of(drafter, target, hidden, texts[:, 0], NUM_CANDIDATES)
    ids, scores = found.token_ids, found.log_probs
    if (
        found.pairs is not None
    ):  # behind the text's own tokens; where one is no candidate, nothing behind it counts
        before = (ids[:, :-1] == texts[:, 1:-1, None]).int().argmax(-1)
        chosen = before[..., None, None].expand(-1, -1, 1, ids.shape[-1])
        scores = scores + torch.cat(
            (found.pairs[:, :1, 0], found.pairs[:, 1:].gather(2, chosen).squeeze(2)), 1
        )
    wanted, slots = texts[:, 1:, None], torch.arange(texts.shape[1] - 1, device=texts.device)
    places = (blocks.anchors[:, None] + slots).clamp(max=len(final) - 1)
    p = target.logits(final[places]).softmax(-1)
    p_x, p_ids, made = p.gather(2, wanted).squeeze(2), p.gather(2, ids), {}
    for scale in SCALES:
        q = (scores * scale).softmax(-1)
        q_x = (q * (ids == wanted)).sum(-1)
        larger = torch.maximum(p_ids, q * (p_x / q_x.clamp(min=1e-30))[..., None]).sum(-1) + 1 - p_ids.sum(-1)
        made[f"noise, {scale}"] = torch.where(q_x > 0, 1 / larger, 0.0) * has_label
        made[f"rejection, {scale}"] = (q_x / p_x).clamp(max=1) * has_label
    return made


def of_kinds(lengths: dict[str, dict[str, float]]) -> dict[str, float]:
    """The mean over kinds of each rule."""
    return {rule: round(sum(one[rule] for one in lengths.values()) / len(lengths), 4) for rule in RULES}
