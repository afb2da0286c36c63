"""What this engine reaches of an H200's data sheet: fitted to its own steps, which data/h200.jsonl has.

Requests cost a time in each layer, and an MTP head a time for each token beside its forward; states of gated delta
layers are replayed, which costs a block's later tokens nothing that could be told from the rest. Products of up to 32
tokens have a kernel of their own; wider ones compute 64 tokens at a time, full or not.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from flashdraft.bench.cost_model import Job
from flashdraft.bench.efficiency import SERVERS, Cell, Fit, fit_efficiency
from flashdraft.bench.published import pair_configs, usual_drafter
from flashdraft.bench.roofline import (
    Method,
    NetworkShape,
    RooflineCosts,
    dflash_shape,
    mtp_shape,
    target_shape,
)
from flashdraft.gpus import GPUS

OWN_GPU = "H200"
_NAMES = (
    "bandwidth_share", "peak_share", "layer_s", "request_s", "round_s", "round_row_s", "draft_step_s", "draft_row_s",
)  # fmt: skip
_BASE = replace(SERVERS, tile=64)
_DECODING = Job(1, 10**9)  # no prompt is among the steps that were measured


@dataclass(frozen=True)
class OwnStep:
    """One measured step: all its requests decode."""

    pair: str
    method: Method
    block_size: int
    concurrency: int
    context: int  # tokens behind a block, about
    step_ms: float


@cache
def own_steps() -> tuple[OwnStep, ...]:
    """The measured steps, in the file's order."""
    lines = files("flashdraft.bench").joinpath("data", "h200.jsonl").read_text().splitlines()
    return tuple(OwnStep(**json.loads(line)) for line in lines)


@cache
def _shapes(pair: str, method: Method) -> tuple[NetworkShape, NetworkShape]:
    if pair == "smollm2-135m":
        from transformers import LlamaConfig

        target = LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, head_dim=64, tie_word_embeddings=True,
        )  # fmt: skip
        draft = replace(
            usual_drafter(target), num_attention_heads=9, num_key_value_heads=3, head_dim=64,
            draft_vocab_size=20480, borrows_head=True,
        )  # fmt: skip
    else:
        target, draft = pair_configs(pair)
        if method == "mtp":
            return target_shape(target), mtp_shape(target)
    return target_shape(target), dflash_shape(draft, target)


def _cell(step: OwnStep) -> Cell:
    costs = RooflineCosts(GPUS[OWN_GPU], *_shapes(step.pair, step.method), step.context, method=step.method)
    speed = 1e3 * step.concurrency / step.step_ms  # as if a round gained one token
    return Cell(costs, _DECODING, step.pair, step.concurrency, step.block_size, 1.0, speed)


def _fit(steps: Sequence[OwnStep]) -> Fit:
    return fit_efficiency([_cell(step) for step in steps], _NAMES, _BASE, has_token_reads=False)


@cache
def own_fit() -> Fit:
    """By all measured steps."""
    return _fit(own_steps())


@cache
def left_out_errors() -> tuple[float, ...]:
    """Measured over predicted speed of each step, by a fit that has not seen it."""
    found = []
    for step in own_steps():
        fit = _fit([one for one in own_steps() if one != step])
        predicted, _ = _cell(step).predict(fit.reached, 0.0)
        found.append(1e3 * step.concurrency / step.step_ms / predicted)
    return tuple(found)
