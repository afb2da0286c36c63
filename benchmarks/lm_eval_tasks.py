"""lm-eval against a server, by its two OpenAI models: does it print what the same target gives offline?

    python -m venv /tmp/lm-eval && /tmp/lm-eval/bin/pip install 'lm_eval[api]==0.4.13' datasets
    python benchmarks/lm_eval_tasks.py --lm-eval /tmp/lm-eval/bin/lm_eval --out benchmarks/results/lm_eval.json

The tasks are made here, of the questions of our own. One asks for answers, by /v1/completions and by
/v1/chat/completions; its right answers are the offline greedy ones, so that lm-eval's exact_match must be 1. One is
multiple choice, which lm-eval asks as token ids with ``echo`` and ``logprobs``; the likelihood of each choice is
compared with the offline one. Exits with 1 where something differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from served_process import start_server

from flashdraft.bench.tasks import load_task
from flashdraft.checkpoint.load import load_tokenizer
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

NAME, DTYPE = "smollm2", "float32"
NUM_TOKENS, STOP = 32, "\n\n"
CHOICES = (" yes", " no", " It depends on the day.")
SAME = 1e-3  # of log-likelihoods: sums of tokens' in float32
OFFLINE = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
ASKED = """output_type: generate_until
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: [{stop}]
  max_gen_toks: {most}
  do_sample: false
metric_list:
  - metric: exact_match
"""
CHOSEN = """output_type: multiple_choice
doc_to_choice: {choices}
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
"""


def offline(limit: int) -> dict[str, Any]:
    """The questions, the greedy answers to them as text and as chat, and the log-likelihood of each choice."""
    llm = LLM("embedded", dtype=DTYPE, block_size=1)
    questions = [prompt.turns[0] for prompt in load_task("gsm8k", limit)]
    greedy = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, stop=(STOP,))
    chats = [[{"role": "user", "content": question}] for question in questions]
    encode = llm.tokenizer.encode
    scored = [{"prompt_token_ids": encode(question + choice)} for question in questions for choice in CHOICES]
    outputs = llm.generate(scored, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))
    told = [one.outputs[0].prompt_logprobs for one in outputs]
    lens = [len(encode(question)) for question in questions for _ in CHOICES]
    return {
        "questions": questions,
        "completions": [one.outputs[0].text for one in llm.generate(questions, greedy)],
        "chat": [one.outputs[0].text for one in llm.chat(chats, greedy)],
        "likelihoods": [
            sum(token.logprob for token in one[length - 1 :]) for one, length in zip(told, lens, strict=True)
        ],
    }


def save_tasks(folder: Path, told: dict[str, Any]) -> None:
    """One task a way of asking, and the tokenizer for lm-eval's counts."""
    kinds = {
        "completions": ASKED.format(stop=json.dumps(STOP), most=NUM_TOKENS),
        "chat": ASKED.format(stop=json.dumps(STOP), most=NUM_TOKENS),
        "choices": CHOSEN.format(choices=json.dumps(CHOICES)),
    }
    for name, body in kinds.items():
        rows = folder / f"{name}.jsonl"
        answers = told.get(name, [""] * len(told["questions"]))
        pairs = zip(told["questions"], answers, strict=True)
        rows.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, rows=rows) + body)
    load_tokenizer().save_pretrained(folder / "tokenizer")


def ask(command: str, folder: Path, url: str, task: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """lm-eval's figures of one task, and its samples."""
    is_chat = task == "chat"
    model, path = ("local-chat-completions", "chat/") if is_chat else ("local-completions", "")
    arguments = f"model={NAME},base_url={url}/v1/{path}completions,num_concurrent=4,max_retries=1"
    arguments += f",tokenizer_backend=huggingface,tokenizer={folder / 'tokenizer'}"
    asked = [command, "run", "--model", model, "--model_args", arguments, "--tasks", task, "--log_samples"]
    asked += ["--include_path", str(folder), "--output_path", str(folder / f"out-{task}")]
    asked += ["--apply_chat_template"] if is_chat else []
    done = subprocess.run(asked, cwd=folder, env=OFFLINE, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"lm-eval failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    out = folder / f"out-{task}"
    [figures] = out.rglob("results_*.json")
    [samples] = out.rglob("samples_*.jsonl")
    found = json.loads(figures.read_text())["results"][task]
    return found, [json.loads(line) for line in samples.read_text().splitlines()]


def rows_of(command: str, folder: Path, url: str, told: dict[str, Any]) -> list[dict[str, Any]]:
    """What lm-eval says of each task, beside what it must say."""
    rows: list[dict[str, Any]] = []
    for task in ("completions", "chat"):
        found, samples = ask(command, folder, url, task)
        match = found["exact_match,none"]
        rows.append({"task": task, "questions": len(samples), "exact_match": match, "is_same": match == 1.0})
    _, samples = ask(command, folder, url, "choices")
    samples.sort(key=lambda one: one["doc_id"])
    theirs = [float(told[0][0]) for one in samples for told in one["resps"]]
    most = max(abs(one - other) for one, other in zip(theirs, told["likelihoods"], strict=True))
    row = {"task": "choices", "questions": len(samples), "most_difference": round(most, 6)}
    return [*rows, row | {"is_same": most < SAME}]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lm-eval", default="lm_eval", help="the command")
    parser.add_argument("--limit", type=int, default=20, help="questions")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    told = offline(args.limit)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tasks(folder, told)
        with start_server(["--dtype", DTYPE, "--served-model-name", NAME]) as server:
            rows = rows_of(args.lm_eval, folder, server.url, told)
    python = Path(args.lm_eval).with_name("python")
    said = subprocess.run(
        [str(python), "-c", "from importlib.metadata import version; print(version('lm_eval'))"],
        capture_output=True,
        text=True,
        check=False,
    )
    figures = {"rows": rows, "lm_eval": said.stdout.strip()}
    print(json.dumps(figures))
    if args.out:
        args.out.write_text(json.dumps(figures | {"provenance": collect_provenance()}, indent=1) + "\n")
    return 0 if all(row["is_same"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
