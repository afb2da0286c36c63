#!/usr/bin/env bash
# Every peer set up, started, measured in turns with ours: benchmarks/results/peers/{rows.jsonl,report.md}.
#   benchmarks/peers/run.sh                                      all of them: 19 GB of memory
#   benchmarks/peers/run.sh vllm "flashdraft,vLLM"               a set that wants less, into results/peers/vllm
#   benchmarks/peers/run.sh others "flashdraft,llama.cpp,transformers,dflash 0.1.0"
# Takes an hour the first time (llama.cpp is compiled, vLLM compiles its graphs), then half an hour; run again, it goes on
# where it was cut off. The machine must do nothing else while it measures: `compare.py measure` by itself is that part.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=benchmarks/results/peers${1:+/$1} systems=${2:-}
compare() { .venv/bin/python benchmarks/peers/compare.py "$@" --systems "$systems" --out "$out"; }
benchmarks/peers/setup.sh
trap 'compare down' EXIT
compare up
compare measure
compare report
