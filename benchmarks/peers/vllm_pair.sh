#!/usr/bin/env bash
# vLLM with our drafter in float32: its greedy tokens with and without it, and its acceptance length beside ours.
#   benchmarks/peers/vllm_pair.sh [PROMPTS_A_TASK] [BLOCK_SIZE]                 -> benchmarks/results/vllm_pair.json
#   AS_RELEASED=1 benchmarks/peers/vllm_pair.sh [PROMPTS_A_TASK] [BLOCK_SIZE]   -> .../vllm_pair_as_released.json
# The first has vllm_cpu_context_norm.patch in vLLM, the second has not.
# What vLLM answered without a drafter is kept in $PEERS and used again; the rest is made anew.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PEERS=${PEERS:-$HOME/.cache/flashdraft/peers}
limit=${1:-40} size=${2:-16}
here=benchmarks/peers work=$PEERS/pair-$limit name=vllm_pair${AS_RELEASED:+_as_released}
benchmarks/peers/setup.sh vllm transformers llamacpp pair
mkdir -p "$work"
drafter=$PEERS/pair/drafter
[ -e "$work/prompts.json" ] || .venv/bin/python $here/vllm_pair.py prompts --limit "$limit" --out "$work/prompts.json"

vllm() { # OPTION... --out FILE
  LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4:$PEERS/vllm/lib/libiomp5.so HF_HUB_OFFLINE=1 \
    OMP_NUM_THREADS=$(nproc) VLLM_CPU_OMP_THREADS_BIND=0-$(($(nproc) - 1)) VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 \
    "$PEERS/vllm/bin/python" $here/vllm_tokens.py --model "$PEERS/pair/target" --dtype float32 \
    --prompts "$work/prompts.json" "$@"
}
[ -e "$work/plain.json" ] || vllm --out "$work/plain.json"
vllm --draft "$drafter" --block-size "$size" --out "$work/dflash.json"
.venv/bin/python $here/vllm_pair.py compare --prompts "$work/prompts.json" --plain "$work/plain.json" \
  --dflash "$work/dflash.json" --draft "$drafter" --block-size "$size" --out "benchmarks/results/$name.json"
