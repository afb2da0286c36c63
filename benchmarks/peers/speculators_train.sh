#!/usr/bin/env bash
# speculators' trainer beside ours for the same minutes on this machine's cores, from the same answers, in the same shape,
# each with its own default recipe; both drafters then served by us on the same prompts, which neither has seen.
#   benchmarks/peers/speculators_train.sh PROMPTS OTHERS [MINUTES]    -> benchmarks/results/speculators_train.json
# JSON lines: the greedy answers to PROMPTS teach (but for the 2 % that our trainer holds back), OTHERS measure. Work and
# logs are kept in $PEERS/train; answers that are there are used again. speculators' steps are counted in a first short
# run, so that its learning-rate schedule ends with its minutes; ours follows the clock. $QUIET: a command that the
# trainings are run with, one that keeps the machine quiet meanwhile.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PEERS=${PEERS:-$HOME/.cache/flashdraft/peers} HF_HUB_OFFLINE=1
prompts=$1 others=$2
export minutes=${3:-6} work=$PEERS/train here=benchmarks/peers ours=.venv/bin/flashdraft
mkdir -p "$work"
$here/setup.sh speculators

$ours train --prompts "$prompts" --temperature 0 --max-new-tokens 256 --answers-only \
  --dtype bfloat16 --out "$work"
[ -e "$work/target" ] || $ours convert --model embedded --to hf --dtype float32 --out "$work/target"
[ -e "$work/arrow/dataset_info.json" ] || {
  .venv/bin/python $here/speculators_train.py data --answers "$work/answers" --out "$work"
  "$PEERS/speculators/bin/python" $here/speculators_timed.py dataset "$work"
}

theirs() { # STEPS: as it comes, but for what a CPU cannot run (Triton's loss, FlexAttention's backward) and for 12 workers
  rm -rf "$work/theirs"
  local command
  command="train --speculator-type dflash $(cat "$work/theirs.options") --max-steps $1 --loss-implementation eager"
  command+=" --draft-attn-impl sdpa --num-workers 0 --on-missing raise --log-freq 1000000"
  echo "$command" > "$work/theirs.command"
  # shellcheck disable=SC2086
  "$PEERS/speculators/bin/python" $here/speculators_timed.py $command --verifier-name-or-path "$work/target" \
    --data-path "$work/arrow" --save-path "$work/theirs" --log-dir "$work/theirs.logs" \
    > "$work/theirs.log" 2>&1 || { tail -20 "$work/theirs.log" >&2; return 1; }
}
ours() { # [--pause-minutes 0]: features alone, as speculators has them before it starts
  local command
  command="train $(cat "$work/ours.options") --max-minutes $minutes --dtype bfloat16 --features cache"
  command+=" --eval-minutes 1000 --checkpoint-minutes 1000 --served-prompts 0"
  echo "$command" > "$work/ours.command"
  # shellcheck disable=SC2086
  $ours $command --answers "$work/answers" --out "$work/ours" "$@"
}
both() {
  set -euo pipefail
  ours --pause-minutes 0
  find "$work/ours" -mindepth 1 -maxdepth 1 ! -name features -exec rm -r {} +
  theirs 8
  theirs "$(.venv/bin/python $here/speculators_train.py steps --steps "$work/theirs/steps.json" --minutes "$minutes")"
  ours
}
${QUIET:-} bash -c "$(declare -f theirs ours both); both"
.venv/bin/python $here/speculators_train.py report --work "$work" --prompts "$others" \
  --peer "$PEERS/speculators/bin/python" --max-tokens 96 --out benchmarks/results/speculators_train.json
