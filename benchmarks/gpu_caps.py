"""Whether a pair in codes serves within a smaller card's memory, and takes what was planned: random weights, one GPU.

Usage: gpu_caps.py OUT.jsonl PAIR WEIGHTS GIB. PyTorch may hold GIB * 2^30 bytes, less what CUDA itself takes. A prompt
of 8,192 tokens and 64 more, plain and by DFlash: the same tokens. ``planned_gb`` is of engine/memory_plan.py,
``peak_gb`` the most that tensors took, ``held_gb`` what the allocator needs in the end, recordings and all; ``parts``
are planned and measured. One JSON object a line.
"""

import gc
import json
import sys
import time

import torch
from gpu_steps import randomly, with_codes
from transformers import AutoConfig

from flashdraft.bench.published import pair_configs, usual_drafter
from flashdraft.engine.engine import Engine
from flashdraft.engine.memory_plan import plan_networks
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.models.base import build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter

CONTEXT = 0.6 * 2**30  # bytes of CUDA's context and libraries, beside PyTorch's allocator
PROMPT, ANSWER, BLOCK = 8192, 64, 16
PAGE = 16
SERVED = EngineConfig(
    max_running=1, num_checkpoints=2, max_step_tokens=64, max_prompt_tokens=512, page_size=PAGE,
    num_pages=(PROMPT + ANSWER) // PAGE + 4,
)  # fmt: skip


def configs_of(pair):
    """(transformers config, the drafter's) of the published pair."""
    if pair != "35b-a3b":
        return pair_configs(pair)
    config = AutoConfig.for_model("qwen3_5_moe_text")  # the values that transformers has for it
    config.intermediate_size = 3 * config.hidden_size  # of the drafter
    return config, usual_drafter(config, 8)


def networks(configs, kind, device):
    """Target and drafter of random weights, on the meta device without any."""
    with torch.device("meta"):
        target, drafter = build_target(configs[0]), DFlashModel(configs[1])
    target = with_codes(target, kind, device)
    if device == "meta":
        return target.to(torch.bfloat16), drafter.to(torch.bfloat16)
    return randomly(target, device), randomly(drafter, device)


def held():
    """Bytes that PyTorch's allocator cannot give back."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


def answer(engine, name, ids, block):
    """(tokens of the greedy answer, seconds)."""
    params = SamplingParams(temperature=0.0, max_tokens=ANSWER, ignore_eos=True)
    engine.add_request(name, ids, params, block)
    started = time.perf_counter()
    tokens = [token for output in engine.run() for token in output.token_ids]
    return tokens, time.perf_counter() - started


def measured(configs, kind, gib, device="cuda", served=SERVED, length=PROMPT):
    """A row: what was planned, what was taken, and whether both ways gave the same tokens."""
    plan = plan_networks(*networks(configs, kind, "meta"), served, BLOCK)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((gib * 2**30 - CONTEXT) / total)
    target, network = networks(configs, kind, device)
    weights = held()
    torch.cuda.reset_peak_memory_stats()
    engine = Engine(target, DFlashDrafter(network, target), served, (), None, 1)
    caches = held() - weights
    engine.runner.record_prompts()  # as at a server's start
    recorded = held() - weights - caches
    ids = torch.randint(
        0, configs[0].vocab_size - 8, (length,), generator=torch.Generator().manual_seed(1)
    ).tolist()
    plain, plain_s = answer(engine, "plain", ids, 1)
    other = [ids[0] ^ 1, *ids[1:]]  # which no prefix is known of
    cold, cold_s = answer(engine, "cold", other, BLOCK)
    drafted, drafted_s = answer(engine, "drafted", ids, BLOCK)
    planned, peak = plan.serving_bytes(served.num_pages * PAGE), torch.cuda.max_memory_allocated()
    taken = plan.activation_bytes + plan.chunk_bytes + plan.beside_bytes
    pages = planned - plan.weight_bytes - plan.draft_weight_bytes - taken
    parts = {
        "weights": (plan.weight_bytes + plan.draft_weight_bytes, weights),
        "caches": (pages, caches),
        "recorded chunks": (plan.chunk_bytes, recorded),
    }
    return {
        "planned_gb": planned / 1e9, "peak_gb": peak / 1e9, "held_gb": held() / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9, "peak_over_planned": peak / planned,
        "parts": {name: [round(size / 1e9, 3) for size in both] for name, both in parts.items()},
        "same_tokens": plain == drafted, "tokens": len(drafted), "distinct": len(set(plain)), "cold_tokens": len(cold),
        "plain_s": plain_s, "cold_s": cold_s, "drafted_s": drafted_s,
    }  # fmt: skip


def main():
    out, pair, kind, gib = sys.argv[1:5]
    torch.manual_seed(0)
    row = {"pair": pair, "weights": kind, "capped_gib": float(gib)}
    row |= measured(configs_of(pair), kind, float(gib)) | {"provenance": collect_provenance("cuda")}
    with open(out, "a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
