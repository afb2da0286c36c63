"""A prompt's chunk behind a long context: its attention by pages, by the steps' kernel, or over gathered keys.

    python benchmarks/gpu_prompt_attention.py OUT.jsonl

The 27B's sixteen layers of attention, random keys, bfloat16. Microseconds a layer, recorded, by tokens of the chunk and
keys before it; ``error``: the largest difference over the largest value. It says where cuda/step takes which.
"""

import json
import sys
from functools import partial

import torch
from gpu_kernels import error, seconds

from flashdraft.cache.kv_cache import KVShape
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache
from flashdraft.cuda import step
from flashdraft.ops.attention import AttentionSpec
from flashdraft.provenance import collect_provenance

LAYERS, HEADS, KV_HEADS, HEAD_DIM, PAGE = 16, 24, 4, 256, 16


def sources(cache, start, tokens):
    """The same chunk's source, by pages and gathered."""
    row = CacheRow("one", range(-(-(start + tokens) // PAGE)), start)
    slots = torch.arange(start, start + tokens, device="cuda")
    kept, found = step._MOST_IN_ROWS, {}
    for name, most in (("by pages", start + tokens), ("gathered", 0)):
        step._MOST_IN_ROWS = most
        specs = [AttentionSpec()] * LAYERS
        found[name] = step.PrefillSource(cache, slots, (slots, slots), [row], [tokens], specs)
    step._MOST_IN_ROWS = kept
    return found


def main():
    shapes = [KVShape(KV_HEADS, HEAD_DIM)] * LAYERS
    cache = PagedKVCache(shapes, (32768 + 1024) // PAGE, PAGE, torch.bfloat16, "cuda", by_layer=True)
    for layer in range(LAYERS):
        cache.slots[:, layer].normal_()
    provenance = collect_provenance("cuda")
    for start in (256, 1024, 8192, 16384, 32768):
        for tokens in (64, 128, 256, 512):
            q = torch.randn(tokens, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
            found = sources(cache, start, tokens)
            outs = [source.attend(0, q, None) for source in found.values()]
            row = {"pair": "27b", "method": "prompt attention", "tokens": tokens, "context": start}
            row["error"] = round(error(*outs), 5)
            for name, source in found.items():
                calls = [partial(source.attend, layer, q, None) for layer in range(LAYERS)]
                row[f"{name}, us"] = round(seconds(calls) * 1e6, 1)
            print(json.dumps(row), flush=True)
            with open(sys.argv[1], "a") as file:
                file.write(json.dumps(row | {"provenance": provenance}) + "\n")


if __name__ == "__main__":
    main()
