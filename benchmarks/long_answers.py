"""Long answers with thinking on and off: are the drafted ones plain decoding's, and what is thought, what is said?

    python benchmarks/long_answers.py --out benchmarks/results/long_answers.json

Ten prompts through a chat template of Qwen3.5's kind, every answer run to its limit of 4,096 tokens, greedy and
sampled, in float32, all side by side in the engine; each text goes through the server's split of thoughts and words.
Without --model the target is a tiny Qwen3.5 with random weights in the published layout: it says nothing, but thinks
and stops thinking where its sampled tokens say so, and forgets none of 4,096 tokens of state.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from flashdraft.bench.lossless import find_difference
from flashdraft.bench.tasks import load_task
from flashdraft.checkpoint.load import load_drafter, load_target
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM, RequestOutput
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig, build_target_layer_ids
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.server.answer_parts import PartsReader, thinking_of
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.ngram import NgramDrafter

SPECIAL = ("<|im_start|>", "<|im_end|>", "<mask>")
THINK = ("<think>", "</think>")  # tokens of their own, but words of the text
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 16384,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "full_attention_interval": 2,
}


def make_tiny(folder: Path) -> None:
    """A random Qwen3.5 as it is published: language model beside a vision tower, byte tokenizer, template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.add_tokens(list(THINK))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", chat_template=TEMPLATE
    )
    text = {**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 48}
    torch.manual_seed(0)
    model = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
            elif name.endswith("A_log"):
                parameter.normal_(mean=-5.0)  # slow decays: what was said long ago still counts
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_drafter(target: TargetModel) -> DFlashModel:
    """Random weights: its drafts are right by chance alone."""
    size, vocab = target.config.hidden_size, target.config.vocab_size
    model = DFlashModel(
        DFlashConfig(
            hidden_size=size,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=vocab,
            block_size=8,
            mask_token_id=vocab - 3,
            target_layer_ids=build_target_layer_ids(target.config.num_hidden_layers, 2),
            num_target_layers=target.config.num_hidden_layers,
            max_position_embeddings=target.config.max_position_embeddings,
        )
    )
    model.init_weights(torch.Generator().manual_seed(1), std=0.1)
    return model.eval()


def answer(
    model: str, drafter: Drafter | None, block_size: int, prompts: list[list[int]], params: SamplingParams
) -> list[RequestOutput]:
    """All prompts side by side."""
    llm = LLM(model, drafter, block_size, dtype="float32", max_running=len(prompts))
    room = sum(len(prompt) + params.max_tokens for prompt in prompts)
    llm.engine_config = EngineConfig(max_running=len(prompts), num_pages=room // 16 + len(prompts))
    return llm.generate(prompts, params)


def measure(model: str, drafters: dict[str, Drafter], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each method, temperature and thinking flag."""
    llm = LLM(model, None, dtype="float32")
    questions = [prompt.turns[0] for prompt in load_task("mt-bench", args.limit)]
    asked = {
        thinks: [
            llm.chat_token_ids([{"role": "user", "content": question}], enable_thinking=thinks)
            for question in questions
        ]
        for thinks in (True, False)
    }
    prompts = [*asked[True], *asked[False]]
    rows = []
    for temperature in args.temperatures:
        params = SamplingParams(
            temperature=temperature, max_tokens=args.max_tokens, ignore_eos=not args.eos, seed=0
        )
        plain = answer(model, None, 1, prompts, params)
        for name, drafter in drafters.items():
            drafted = answer(model, drafter, args.block_size, prompts, params)
            for thinks, part in (
                (True, slice(0, len(questions))),
                (False, slice(len(questions), None)),
            ):
                row = compare(llm, prompts[part], plain[part], drafted[part], params)
                rows.append({"method": name, "temperature": temperature, "thinking": thinks, **row})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def compare(
    llm: LLM,
    prompts: list[list[int]],
    plain: list[RequestOutput],
    drafted: list[RequestOutput],
    params: SamplingParams,
) -> dict[str, Any]:
    """Token for token, part for part."""
    num_equal = num_ties = num_parts_equal = num_stopped_thinking = 0
    lengths = []
    for prompt, one, other in zip(prompts, plain, drafted, strict=True):
        ids = [out.outputs[0].token_ids for out in (one, other)]
        difference = find_difference(llm.target, prompt, *ids, params)
        num_equal += difference is None
        num_ties += difference is not None and difference.is_near_tie
        parts = [split(llm, prompt, out.outputs[0].text) for out in (one, other)]
        num_parts_equal += parts[0] == parts[1]
        num_stopped_thinking += bool(parts[1][0] and parts[1][1])
        lengths.append(len(ids[1]))
    rounds = sum(out.metrics.num_rounds for out in drafted)
    return {
        "num_prompts": len(prompts),
        "num_equal": num_equal,
        "num_near_ties": num_ties,
        "num_parts_equal": num_parts_equal,
        "num_with_thoughts_and_words": num_stopped_thinking,
        "tokens": [min(lengths), max(lengths)],
        "acceptance_length": round((sum(lengths) - len(lengths)) / rounds, 3),
    }


def split(llm: LLM, prompt: list[int], text: str) -> tuple[str, str]:
    """Thoughts and words."""
    end = llm.tokenizer.decode(prompt[-16:])
    reader = PartsReader(thinking_of(llm.tokenizer.chat_template, end))
    parts = [reader.push(text), reader.flush()]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a target; default: a tiny random one")
    parser.add_argument("--draft", help="its DFlash drafter; default: a tiny random one")
    parser.add_argument("--limit", type=int, default=10, help="prompts")
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=8)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--eos", action="store_true", help="let answers end before their limit")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or folder
        if args.model is None:
            make_tiny(Path(folder))
        target = load_target(model, dtype="float32")
        network = load_drafter(args.draft, target, dtype="float32") if args.draft else tiny_drafter(target)
        drafters = {"dflash": DFlashDrafter(network, target), "ngram": NgramDrafter(args.block_size)}
        rows = measure(model, drafters, args)
    document = {"rows": rows, "settings": {**vars(args), "out": None}, "provenance": collect_provenance()}
    args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
