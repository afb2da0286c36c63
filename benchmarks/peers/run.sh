#!/usr/bin/env bash
# Every peer set up, started, measured in turns with ours: benchmarks/results/peers/{vllm,others}/rows.jsonl, report.md.
# Two sets, since all servers at a time want more than 20 GB; ours is in both. Takes an hour the first time (llama.cpp is
# compiled, vLLM compiles its graphs), then half an hour; run again, it goes on where it was cut off.
set -euo pipefail
cd "$(dirname "$0")/../.."
compare() { .venv/bin/python benchmarks/peers/compare.py "$@"; }
benchmarks/peers/setup.sh
trap 'compare down' EXIT
measure() { # NAME SYSTEMS
  compare up --systems "$2"
  compare measure --systems "$2" --out "benchmarks/results/peers/$1"
  compare report --out "benchmarks/results/peers/$1"
  compare down --systems "$2"
}
measure vllm "flashdraft,vLLM"
measure others "flashdraft,llama.cpp,transformers,dflash 0.1.0"
