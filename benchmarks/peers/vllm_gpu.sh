#!/usr/bin/env bash
# Ours and vLLM 0.24 on one GPU in turn: the 27B's shape in bf16, FP8 and 4 bits, and the embedded pair, plain and in blocks.
#   VLLM=/path/of/vllm's/python benchmarks/peers/vllm_gpu.sh FOLDER PROMPTS.json      an hour; CUDA, 100 GB of memory, flashdraft in .venv
# FOLDER gets rows.jsonl, codes.jsonl, bits.jsonl, vllm-PAIR-METHOD.json and report.md, as benchmarks/results/h200/beside-vllm has them.
# A vLLM that starts prints nothing for two to four minutes: it compiles.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(mkdir -p "$1" && cd "$1" && pwd) prompts=$(realpath "$2") work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
touch "$out"/{rows,codes,bits}.jsonl
ours() { .venv/bin/python "benchmarks/$1" "${@:2}"; }
theirs() { # PAIR WEIGHTS METHOD
  local name=$1${2:+-$2}
  PYTHONPATH=src VLLM_USE_FLASHINFER_SAMPLER=0 "$VLLM" benchmarks/peers/vllm_steps.py "$1" "$work/$name" "$out/vllm-$name-$3.json" \
    --weights "${2:-bf16}" --method "$3" --prompts "$prompts"
}
for method in plain,prefill:ar b8:b8 b16,b16short:b16; do
  ours gpu_steps.py "$out/rows.jsonl" qwen3.5-27b 300 "${method%:*}"
  theirs 27b "" "${method#*:}"
done
ours gpu_steps.py "$out/rows.jsonl" qwen3.5-27b 300 bits
for weights in fp8 int4; do
  ours gpu_steps.py "$out/codes.jsonl" qwen3.5-27b 200 plain,b16 $weights
  theirs 27b $weights ar
done
.venv/bin/flashdraft convert --model embedded --to hf --out "$work/135m/target"
ours gpu_embedded.py "$out/rows.jsonl" "$prompts" --seconds 600 --methods plain auto b16 b8 tree32
theirs 135m "" ar
ours vllm_rows.py "$out"
ours gpu_report.py "$out"
