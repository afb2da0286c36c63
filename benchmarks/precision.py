"""What each precision on the CPU costs in accuracy: the embedded target, teacher-forced on answers of its own.

    python benchmarks/precision.py --out benchmarks/results/precision.json

The answers are plain bfloat16's, greedy, to the first prompts of the five tasks. For every answer token: is the
likeliest token the reference's, and KL(reference || this) in nat. References: the PyTorch modules in bfloat16, the
type of the checkpoint, and in float32, of which bfloat16 is itself a rounding.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.checkpoint.load import load_target, load_tokenizer
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.native.accelerate import accelerate
from flashdraft.native.target import NativeTarget
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams


def precisions() -> dict[str, TargetModel]:
    """Every precision by its name."""
    made = {"float32": load_target(dtype="float32"), "bfloat16, PyTorch": load_target()}
    for name, quantization in (("bfloat16", None), ("int8", "int8"), ("int4", "int4")):
        target = accelerate(load_target(dtype="float32" if quantization else "bfloat16"), quantization)
        assert isinstance(target, NativeTarget), "this CPU has no fast path"
        made[name] = target
    return made


def log_probs(target: TargetModel, prompt: list[int], answer: list[int]) -> Tensor:
    """[len(answer), vocab_size], float32: what the target gives each token of ``answer``."""
    tokens = prompt + answer[:-1]
    cache = target.new_cache(1, len(tokens))
    hidden = target.forward(ForwardBatch.of_row(tokens, 0), cache).hidden[0, len(prompt) - 1 :]
    return target.logits(hidden).log_softmax(-1)


def questions(per_task: int) -> list[list[int]]:
    """Prompts of the five tasks as token ids."""
    tokenizer = load_tokenizer()
    ask: Callable[[str], list[int]] = lambda text: tokenizer.apply_chat_template(  # noqa: E731
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
    )
    return [ask(prompt.turns[0]) for task in TASKS for prompt in load_task(task, per_task)]


@torch.inference_mode()
def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--per-task", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    targets = precisions()
    params = SamplingParams(temperature=0, max_tokens=args.max_tokens)
    sums: dict[tuple[str, str], Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
    for prompt in questions(args.per_task):
        answer = generate(targets["bfloat16"], None, prompt, params, eos_token_ids=(2,)).token_ids
        found = {name: log_probs(target, prompt, answer) for name, target in targets.items()}
        for reference in ("bfloat16, PyTorch", "float32"):
            wanted = found[reference]
            for name, got in found.items():
                agrees = (got.argmax(-1) == wanted.argmax(-1)).sum()
                divergence = (wanted.exp() * (wanted - got)).sum()
                sums[reference, name] += torch.tensor([len(answer), agrees, divergence], dtype=torch.float64)
    rows = []
    for (reference, name), (count, agrees, divergence) in sums.items():
        row = {"reference": reference, "precision": name, "num_tokens": int(count)}
        row |= {"top1_agreement": float(agrees / count), "mean_kl_nat": float(divergence / count)}
        print(f"{name:18} against {reference:18} top-1 {agrees / count:.2%}  KL {divergence / count:.2e} nat")
        rows.append(row)
    if args.out:
        args.out.write_text(json.dumps({"rows": rows, "provenance": collect_provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
