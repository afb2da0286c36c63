#!/usr/bin/env bash
# vLLM 0.33.0 reads a DFlash drafter that speculators 0.9.0 wrote with defaults as causal within the block, in all of its
# layers. speculators trains full-attention layers in both directions; its sliding_window_non_causal, false unless asked
# for, speaks of sliding layers alone, and is written into every config.json. vLLM makes one causal flag for all layers
# of it. The two are of one project, and an engineer would guess that each reads what the other writes. Nothing is raised
# or logged, and answers stay right: the drafter just runs as it was not trained. A config without the field is read the
# other way round, vLLM's default is true. For us: `flashdraft launch vllm` refuses such a pair, and `flashdraft convert
# --to speculators` writes true where there are no sliding layers.
#
# Seen (speculators 0.9.0, vllm 0.33.0, transformers 5.19.0, Python 3.11); which layers are causal within the block:
#   full, full     written false  speculators [False, False]  vLLM [True, True]
#   sliding, full  written false  speculators [True, False]   vLLM [True, True]
#   full, full     as z-lab's                                 vLLM [False, False]
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  torch==2.13.0 transformers==5.19.0 numpy==2.4.6 cachetools==8.0.2 cbor2==6.3.0 cloudpickle==3.1.3 einops==0.8.2 \
  fastapi==0.165.0 msgspec==0.23.0 openai==3.57.0 openai-harmony==0.0.8 opentelemetry-api==1.45.2 orjson==3.13.0 \
  partial-json-parser==0.2.1.1.post7 pillow==13.0.0 prometheus_client==0.26.0 protobuf==7.36.2 psutil==7.2.2 \
  py-cpuinfo==9.0.0 pybase64==1.5.1 pydantic==2.14.4 pydantic-extra-types==2.11.1 pydantic-settings==2.16.3 \
  pyzmq==27.3.0 regex==2026.11.19 requests==2.34.2 setuptools==84.2.1 aiohttp==3.14.5 dill==0.4.1 uvloop==0.23.0 \
  accelerate==1.15.0 sentencepiece==0.2.3 datasets==5.1.0 loguru==0.7.3 apache-tvm-ffi==0.1.15.post2 \
  llguidance==1.9.1
"$folder/venv/bin/python" -m pip install -qq --no-deps \
  speculators==0.9.0 hs-connectors==0.9.0 vllm==0.33.0 triton==3.9.0 xgrammar==0.2.8
cat >"$folder/probe.py" <<'PROBE'
import tempfile

import torch
from speculators import DFlashDraftModel, DFlashSpeculatorConfig, SpeculatorsConfig, VerifierConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import Qwen3Config
from vllm.model_executor.models.qwen3_dflash import _dflash_layer_causal
from vllm.transformers_utils.configs.speculators.base import SpeculatorsConfig as AsVllmReads

BLOCK, CONTEXT = 4, 8
shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


def written(layer_types, folder):
    """A drafter's config as speculators writes it, all that has a default left to it."""
    slides = "sliding_attention" in layer_types
    layer = Qwen3Config(
        **shape, layer_types=layer_types, use_sliding_window=slides, sliding_window=6 if slides else None
    )
    proposal = GreedyTokenProposalConfig(speculative_tokens=BLOCK - 1)
    config = DFlashSpeculatorConfig(
        transformer_layer_config=layer, draft_vocab_size=64, block_size=BLOCK, aux_hidden_state_layer_ids=[1, 2],
        mask_token_id=63,
        speculators_config=SpeculatorsConfig(
            algorithm="dflash", proposal_methods=[proposal], default_proposal_method="greedy",
            verifier=VerifierConfig(name_or_path="target", architectures=["Qwen3ForCausalLM"]),
        ),
    )
    config.save_pretrained(folder)
    return config


def trained_causal(config):
    """For each layer, whether speculators hides the block's later slots from its first mask in training."""
    config.transformer_layer_config._attn_implementation = "eager"
    drafter = DFlashDraftModel(config)
    masks = drafter._build_attention_mask(
        torch.ones(1, CONTEXT), 1, torch.zeros(1, CONTEXT, dtype=torch.long), torch.device("cpu")
    )
    sees_last = [None if mask is None else bool(mask[0, 0, 1, CONTEXT + BLOCK - 1] == 0) for mask in masks[:2]]
    return [not sees_last[kind == "sliding_attention"] for kind in config.transformer_layer_config.layer_types]


def told(label, was_written, trained, served):
    print(f"{label:14} {was_written:14} {trained and f'speculators {trained}':27} vLLM {served}")


found = []
for layer_types in (["full_attention"] * 2, ["sliding_attention", "full_attention"]):
    with tempfile.TemporaryDirectory() as folder:
        config = written(layer_types, folder)
        theirs = AsVllmReads.from_pretrained(folder)
    trained, served = trained_causal(config), [_dflash_layer_causal(theirs, i) for i in range(2)]
    label = ", ".join(kind.removesuffix("_attention") for kind in layer_types)
    told(label, f"written {str(config.sliding_window_non_causal).lower()}", trained, served)
    found.append((trained, served))
plain = Qwen3Config(**shape, dflash_config={"mask_token_id": 63, "target_layer_ids": [0, 1]})
served = [_dflash_layer_causal(plain, i) for i in range(2)]
told("full, full", "as z-lab's", "", served)
assert found[0][0] == served == [False, False] and found[1][0] == [True, False], "they behave otherwise now"
assert found[0][1] == found[1][1] == [True, True], "vLLM reads each layer's causality now"
PROBE
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
