#!/usr/bin/env bash
# Every peer set up, started, measured in turns with ours, and one table: benchmarks/results/peers/report.md.
# Takes an hour the first time (llama.cpp is compiled), then half an hour; run again, it goes on where it was cut off.
set -euo pipefail
cd "$(dirname "$0")/../.."
benchmarks/peers/setup.sh
trap '.venv/bin/python benchmarks/peers/compare.py down' EXIT
.venv/bin/python benchmarks/peers/compare.py up
.venv/bin/python benchmarks/peers/compare.py measure
.venv/bin/python benchmarks/peers/compare.py report
