#!/usr/bin/env bash
# The shipped drafter, end to end on one CUDA GPU (an H200 took 6 minutes for the answers and 14 for the training).
#   PROMPTS=folder of prompt files, RUNS=where to write; run from the repository's root.
# What the three runs were when the drafter was made is in run-a, run-b and run-c: settings and logs.
set -euo pipefail
: "${PROMPTS:?a folder of .jsonl or .jsonl.gz prompts}" "${RUNS:=runs/smollm2-135m}"
train() { .venv/bin/flashdraft train --device cuda --dtype bfloat16 --rows-per-step 24 --blocks-per-row 384 \
  --total-blocks 1000000000 "$@"; }

# Answers: interrupted and resumed as the lease allowed; complete, they are some 30 M tokens.
timeout 215 .venv/bin/flashdraft train --device cuda --dtype bfloat16 --prompts "$PROMPTS" --out "$RUNS/data" \
  --answer-rows 4096 --answers-only || true
train --answers "$RUNS/data/answers" --out "$RUNS/a" --max-minutes 4.2 --eval-minutes 1.3

timeout 130 .venv/bin/flashdraft train --device cuda --dtype bfloat16 --prompts "$PROMPTS" --out "$RUNS/data" \
  --answer-rows 4096 --answers-only || true
train --answers "$RUNS/data/answers" --out "$RUNS/b" --init "$RUNS/a/drafter" --lr 1.5e-3 --max-minutes 5.4 \
  --eval-minutes 1.7
train --answers "$RUNS/data/answers" --out "$RUNS/c" --init "$RUNS/b/drafter" --lr 1e-3 --seed 7 --max-minutes 4.5 \
  --eval-minutes 2
