"""Speed of a training step and of answer generation against the floor, on random weights of the embedded shape.

    python benchmarks/train_speed.py --device cuda --out train_speed.json

Prints one JSON object; ``floor_s`` is the step's matrix FLOPs over the rate of a large bf16 matrix product measured
in the same run.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from flashdraft.data.answerer import AnswerRequest
from flashdraft.data.engine_answers import EngineAnswers, rollout_config
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document
from flashdraft.engine.engine import Engine
from flashdraft.models.base import TargetModel, build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig, build_target_layer_ids
from flashdraft.provenance import collect_provenance
from flashdraft.train.config import TrainConfig
from flashdraft.train.trainer import Trainer

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def random_target(device: str, dtype: torch.dtype) -> TargetModel:
    target = build_target(LlamaConfig(**SHAPE)).to(device=device, dtype=dtype)
    for parameter in target.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return target.requires_grad_(False)


def random_drafter(target: TargetModel, num_layers: int, device: str) -> DFlashModel:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    config = DFlashConfig(
        **{name: SHAPE[name] for name in names},
        head_dim=64,
        num_hidden_layers=num_layers,
        block_size=16,
        mask_token_id=16,
        target_layer_ids=build_target_layer_ids(30, 5),
        num_target_layers=30,
        max_position_embeddings=8192,
    )
    drafter = DFlashModel(config)
    drafter.init_weights(torch.Generator().manual_seed(0))
    return drafter.to(device=device, dtype=target.dtype)


def random_rows(count: int, seq_len: int, device: str) -> PackedRows:
    rng = random.Random(0)

    def text(low: int, high: int) -> list[int]:
        return [rng.randrange(17, 49152) for _ in range(rng.randrange(low, high))]

    documents = [Document(str(i), "x", 0.0, text(40, 200), text(100, 384), "stop") for i in range(count)]
    return pack(documents, seq_len, device)


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        seconds = timed(lambda: a @ b, device, repeats=5)
        best = min(best, seconds)
    return 2 * size**3 / best


def timed(run: Any, device: str, repeats: int) -> float:
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def step_flops(config: TrainConfig) -> float:
    """Matrix FLOPs of one step without attention scores: target forward, drafter both ways, head both ways."""
    hidden, inter, kv = SHAPE["hidden_size"], SHAPE["intermediate_size"], 192
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inter
    tokens = config.rows_per_step * config.seq_len
    slots = config.rows_per_step * config.blocks_per_row * config.block_size
    context = 5 * hidden * hidden + config.num_layers * 2 * hidden * kv
    head = (
        config.slots_per_block * config.rows_per_step * config.blocks_per_row * SHAPE["vocab_size"] * hidden
    )
    return 2 * tokens * 30 * layer + 6 * slots * config.num_layers * layer + 6 * tokens * context + 4 * head


def measure_step(
    config: TrainConfig, rate: float, device: str, dtype: torch.dtype, profile: bool
) -> dict[str, Any]:
    target = random_target(device, dtype)
    rows = random_rows(40 * config.rows_per_step, config.seq_len, device)
    drafter = random_drafter(target, config.num_layers, device)
    trainer = Trainer(target, drafter, rows, {}, config, Path(tempfile.mkdtemp()))

    def step() -> None:
        trainer._step()
        trainer.progress.step += 1

    started = time.perf_counter()
    timed(step, device, 3)
    warm_s = time.perf_counter() - started
    seconds = timed(step, device, 20 if device == "cuda" else 2)
    if profile:
        with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as recorded:
            timed(step, device, 2)
        print(
            recorded.key_averages().table(
                sort_by="self_device_time_total", row_limit=28, max_name_column_width=70
            )
        )
    blocks = config.rows_per_step * config.blocks_per_row
    floor_s = step_flops(config) / rate
    return {
        "rows": config.rows_per_step,
        "blocks_per_row": config.blocks_per_row,
        "slots_per_block": config.slots_per_block,
        "optimizer": config.optimizer,
        "warm_s": warm_s,
        "step_s": seconds,
        "blocks_per_s": blocks / seconds,
        "tokens_per_s": config.rows_per_step * config.seq_len / seconds,
        "floor_s": floor_s,
        "utilisation": floor_s / seconds,
    }


def measure_answers(num_rows: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    target = random_target(device, dtype)
    generator = EngineAnswers(Engine(target, None, rollout_config(num_rows, 256), [2]), 128)
    requests = [AnswerRequest(i, list(range(20, 140)), 0.7) for i in range(num_rows)]
    started = time.perf_counter()
    num_tokens = sum(len(answer.token_ids) for part in generator.run(requests) for answer in part)
    return {"num_rows": num_rows, "answer_tokens_per_s": num_tokens / (time.perf_counter() - started)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--blocks-per-row", type=int, default=256)
    parser.add_argument("--answer-rows", type=int, nargs="+", default=[2048])
    args = parser.parse_args()
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    rate = matmul_rate(args.device, dtype)
    results: dict[str, Any] = {"matmul_flops_per_s": rate, "provenance": collect_provenance(args.device)}
    results["answers"] = [measure_answers(n, args.device, dtype) for n in args.answer_rows]
    results["steps"] = []
    for rows in args.rows:
        config = TrainConfig(rows_per_step=rows, blocks_per_row=args.blocks_per_row)
        results["steps"].append(measure_step(config, rate, args.device, dtype, profile=rows == args.rows[-1]))
        args.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
