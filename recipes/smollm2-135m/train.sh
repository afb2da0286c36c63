#!/usr/bin/env bash
# The shipped drafter and the MTP head, end to end on CUDA GPUs: answers, a study of the recipe, training.
#   PROMPTS=folder of prompt files  RUNS=where to write  recipes/smollm2-135m/train.sh STAGE
# Stages, each of them to be run in this order, from the repository's root:
#   answers            every prompt at temperature 0 and 0.7, the prompts dealt out to the GPUs
#   study GPU ROW...   rows of study.py on one GPU
#   drafter ...        `flashdraft train` on GPU 0 with further options (--init, --max-minutes, --distill, ...)
#   mtp ...            the same for an MTP head, on the last GPU
# What was run when the shipped weights were made stands in run-*/: settings and logs, of 24 rows of 384 anchors.
set -euo pipefail
: "${RUNS:=runs/smollm2-135m}" "${PYTHON:=.venv/bin/python}"
stage=$1; shift
gpus=$(nvidia-smi --list-gpus | wc -l)
on() { CUDA_VISIBLE_DEVICES=$1 "${@:2}"; }
train() { "$PYTHON" -c 'from flashdraft.cli.main import main; main()' train --device cuda --dtype bfloat16 "$@"; }
answered() { for folder in "$RUNS"/answers-*/; do printf -- "$1 %s " "${folder}answers"; done; }

case $stage in
answers)
  : "${PROMPTS:?a folder of .jsonl or .jsonl.gz prompts}"
  # As many rows as the cache of 896 tokens a row leaves room for.
  memory_mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1)
  rows=$((memory_mib > 120000 ? 4096 : 2816))
  mkdir -p "$RUNS"
  for ((i = 0; i < gpus; i++)); do
    mkdir -p "$RUNS/prompts-$i" "$RUNS/answers-$i"
    for file in "$PROMPTS"/*.jsonl.gz; do
      zcat "$file" | awk -v n="$gpus" -v i="$i" 'NR % n == i' | gzip -1 > "$RUNS/prompts-$i/$(basename "$file")"
    done
    on "$i" train --prompts "$RUNS/prompts-$i" --out "$RUNS/answers-$i" --answer-rows "$rows" --answers-only \
      > "$RUNS/answers-$i/log" 2>&1 &
  done
  wait
  ;;
study)
  gpu=$1; shift
  # shellcheck disable=SC2046
  on "$gpu" "$PYTHON" recipes/smollm2-135m/study.py --answers $(answered "") --out "$RUNS/study-$gpu" "$@"
  ;;
drafter)
  # shellcheck disable=SC2046
  # Many rows of few anchors: anchors of one row share its context (study/equal-minute, study/48x128). The rate, twice
  # the default, is what a new drafter learns fastest with there; to go on from weights (--init) say a lower --lr.
  on 0 train $(answered --answers) --out "$RUNS/drafter" --rows-per-step 48 --blocks-per-row 128 \
    --lr 4e-3 --total-blocks 1000000000 "$@"
  ;;
mtp)
  # shellcheck disable=SC2046
  on $((gpus - 1)) train --method mtp --block-size 8 $(answered --answers) --out "$RUNS/mtp" --rows-per-step 24 \
    --blocks-per-row 384 --total-blocks 1000000000 "$@"
  ;;
*) echo "unknown stage $stage" >&2; exit 2 ;;
esac
