"""Where an engine step's time goes on this machine: SmolLM2's shape, random bfloat16 weights, a few steps each.

    python benchmarks/engine_step_share.py

Prints, for 1 and 8 requests of 300 tokens and blocks of 1 and 8: milliseconds a step, the shares of the networks
(both forwards, head) and of the cache's own work (arrange, read, commit).
"""

from collections import Counter
from time import perf_counter
from typing import Any

import torch
from transformers import LlamaConfig

from flashdraft.cache.paged_rows import PagedRows
from flashdraft.cache.paged_step import PagedSource
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.models.base import build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig
from flashdraft.models.llama import LlamaModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter

SHAPE: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}
DRAFTER: dict[str, Any] = {
    "num_hidden_layers": 3,
    "block_size": 8,
    "mask_token_id": 49151,
    "target_layer_ids": (1, 7, 14, 20, 27),
    "num_target_layers": 30,
}
NUM_STEPS = 6
spent: Counter[str] = Counter()


def clock(owner: type, name: str) -> None:
    """Count the seconds of a method under its name."""
    inner = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        result = inner(*args, **kwargs)
        spent[name] += perf_counter() - started
        return result

    setattr(owner, name, timed)


@torch.inference_mode()
def measure(engine: Engine, num_requests: int, block_size: int) -> None:
    """Print one line."""
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    for i in range(num_requests):
        engine.add_request(str(i), [(7 * i + j) % 49152 for j in range(300)], params, block_size)
    while any(request.is_prefilling for request in engine.requests.values()):
        engine.step()
    engine.step()
    spent.clear()
    started = perf_counter()
    for _ in range(NUM_STEPS):
        engine.step()
    step_s = (perf_counter() - started) / NUM_STEPS
    shares = ", ".join(f"{name} {s / NUM_STEPS / step_s:.1%}" for name, s in spent.most_common())
    print(f"requests {num_requests} block {block_size}: {step_s * 1e3:.0f} ms; {shares}")


def main() -> None:
    """Build both networks and measure."""
    for owner, name in (
        (LlamaModel, "forward"),
        (LlamaModel, "logits"),
        (DFlashModel, "forward"),
        (DFlashModel, "context"),
        (PagedRows, "arrange"),
        (PagedRows, "commit_paths"),
        (PagedSource, "_read"),
    ):
        clock(owner, name)
    target = build_target(LlamaConfig(**SHAPE, num_hidden_layers=30, tie_word_embeddings=True))
    target = target.bfloat16().eval()
    network = DFlashModel(DFlashConfig(**SHAPE, **DRAFTER)).bfloat16().eval()
    for num_requests in (1, 8):
        for block_size in (1, 8):
            config = EngineConfig(num_pages=400)
            measure(Engine(target, DFlashDrafter(network, target), config), num_requests, block_size)


if __name__ == "__main__":
    main()
