"""How a draft should be chosen for sampled answers: the likeliest tokens, by the target's own noise, or by rejection.

    python benchmarks/draft_sampling.py --limit 8 --out benchmarks/results/draft_sampling.json

Of sampled answers to the five tasks the expected acceptance length is reckoned at every anchor, exactly, for what is
there: the target's distribution p and the drafter's q over its candidates, both at the temperature. A slot's token x,
drawn from p, was drafted with probability

- likeliest: 1 if x is q's largest, else 0;
- noise: P(argmax(log q + g) = x | argmax(log p + g) = x) = 1 / sum over y of max(p(y), q(y) p(x) / q(x)), with Gumbel
  noise g that both share: the rule of sampler.py, a draft is kept iff it is the target's own sample;
- rejection: min(1, q(x) / p(x)) (Leviathan et al. 2023): drafts drawn from q, the residual where one is refused.

All three are lossless. The expected length is 1 and the sum of the products of these along a block.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.checkpoint.load import load_drafter, load_target
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document
from flashdraft.llm import LLM
from flashdraft.models.base import FINAL_HIDDEN, TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.candidates import candidates_of
from flashdraft.train.anchors import blocks_at
from flashdraft.train.forward import block_hidden, context_entries, target_features

RULES = ("likeliest", "noise", "rejection")


def answers(llm: LLM, task: str, temperature: float, args: argparse.Namespace) -> list[Document]:
    """Sampled answers to the task's first prompts."""
    params = SamplingParams(temperature=temperature, max_tokens=args.max_tokens, seed=1)
    outputs = llm.chat(
        [[{"role": "user", "content": one.turns[0]}] for one in load_task(task, args.limit)], params
    )
    return [
        Document("", task, temperature, out.prompt_token_ids, out.outputs[0].token_ids, "length")
        for out in outputs
    ]


@torch.inference_mode()
def lengths(
    target: TargetModel, drafter: DFlashModel, row: PackedRows, temperature: float, args: argparse.Namespace
) -> dict[str, Tensor]:
    """Of each rule the expected acceptance length at every --stride'th anchor of a row."""
    width = len(drafter.config.target_layer_ids) * target.config.hidden_size
    every = target_features(target, row, (*drafter.config.target_layer_ids, FINAL_HIDDEN))
    features, final = every[..., :width].contiguous(), every[0, :, width:]
    places = row.is_anchor[0].nonzero().flatten()[:: args.stride]
    blocks = blocks_at(
        row, places.unsqueeze(0), torch.ones(1, len(places), dtype=torch.bool), args.block_size
    )
    context = context_entries(target, drafter, row, features)
    hidden = block_hidden(target, drafter, row, features, blocks, context)[0, :, 1:].contiguous()
    found: dict[str, list[Tensor]] = {rule: [] for rule in RULES}
    for i, place in enumerate(places.tolist()):
        texts = blocks.labels[0, i]
        p = (target.logits(final[place : place + args.block_size - 1]) / temperature).softmax(-1)
        kept = _kept(drafter, target, hidden[i : i + 1], texts, p, temperature)
        has_label = blocks.has_label[0, i, 1 : 1 + len(p)]
        for rule, chances in kept.items():
            found[rule].append(1 + (chances * has_label).cumprod(0).sum())
    return {rule: torch.stack(values) for rule, values in found.items()}


def _kept(
    drafter: DFlashModel, target: TargetModel, hidden: Tensor, texts: Tensor, p: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Of each rule the probability of every slot that its token is kept, those before it being kept."""
    candidates = candidates_of(drafter, target, hidden, texts[:1], 16)
    ids, scores = candidates.token_ids[0], candidates.log_probs[0]
    if candidates.pairs is not None:  # behind the text's own tokens
        before = (ids[:-1] == texts[1:-1, None]).int().argmax(-1)  # not there: then nothing behind it counts
        behind = (
            candidates.pairs[0, 1:].gather(1, before[:, None, None].expand(-1, 1, ids.shape[-1])).squeeze(1)
        )
        scores = scores + torch.cat((candidates.pairs[0, :1, 0], behind))
    count = len(p)
    ids, q, wanted = ids[:count], (scores[:count] / temperature).softmax(-1), texts[1 : 1 + count, None]
    q_x = (q * (ids == wanted)).sum(-1)
    p_x, p_ids = p.gather(1, wanted).squeeze(1), p.gather(1, ids)
    both = torch.maximum(p_ids, q * (p_x / q_x.clamp(min=1e-30))[:, None]).sum(-1) + 1 - p_ids.sum(-1)
    return {
        "likeliest": (ids.gather(1, scores[:count].argmax(-1, keepdim=True)) == wanted).squeeze(1).float(),
        "noise": torch.where(q_x > 0, 1 / both, 0.0),
        "rejection": (q_x / p_x).clamp(max=1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draft", default="embedded")
    parser.add_argument("--limit", type=int, default=8, help="prompts a task")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--stride", type=int, default=4, help="every so many anchors")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.6, 1.0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    llm = LLM(draft=args.draft, dtype="bfloat16", block_size=8)
    target = load_target("embedded", dtype="bfloat16")  # as modules: training's forward is not the C++ part's
    drafter = load_drafter(args.draft, target, dtype="bfloat16")
    assert isinstance(drafter, DFlashModel)
    if drafter.candidate_selector:
        drafter.candidate_selector.freeze(target.head_weight())
    rows: list[dict[str, Any]] = []
    for temperature in args.temperatures:
        for task in TASKS:
            packed = pack(answers(llm, task, temperature, args), 1024)
            found = [
                lengths(target, drafter, packed.rows(slice(i, i + 1)), temperature, args)
                for i in range(len(packed))
            ]
            means = {rule: round(float(torch.cat([one[rule] for one in found]).mean()), 4) for rule in RULES}
            num_anchors = sum(len(one["noise"]) for one in found)
            rows.append({"temperature": temperature, "task": task, "num_anchors": num_anchors, **means})
            print(rows[-1], flush=True)
        mean = {rule: round(sum(r[rule] for r in rows[-len(TASKS) :]) / len(TASKS), 4) for rule in RULES}
        print({"temperature": temperature, **mean}, flush=True)
    facts = {"draft": args.draft, "provenance": collect_provenance("cpu"), "rows": rows}
    args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
