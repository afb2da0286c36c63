#!/usr/bin/env bash
# speculators 0.9.0 measures a drafter with a draft vocabulary against the target's best token WITHIN that vocabulary:
# the verifier's head, too, has its rows alone. Where the target says a token outside, no draft can be accepted, and yet
# accuracy and eal, the "expected accepted length" that its trainer reports, count the position as right. Here a drafter
# says token 0 always and the target token 40 always, which cannot be drafted: eal is the whole block. An engineer would
# guess that eal is what a server will accept; the smaller the vocabulary, the more it tells. Nothing is raised or
# logged. For us: drafters, vocabularies and trainers are compared by served acceptance alone, as `flashdraft vocab` and
# `train` tell it.
#
# Seen (speculators 0.9.0, transformers 5.19.0, torch 2.13.0 on a CPU, Python 3.11); blocks of 4:
#   target says [40], drafted can be 0 to 15, drafter says [0]
#   accuracy 1.0, eal 4.0; a server accepts 0 drafts, which is an eal of 1.0
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  torch==2.13.0 transformers==5.19.0 numpy==2.4.6 accelerate==1.15.0 datasets==5.1.0 loguru==0.7.3 openai==3.57.0 \
  pydantic==2.14.4 pydantic-settings==2.16.3 aiohttp==3.14.5 httpx psutil==7.2.2 protobuf==7.36.2 rich==15.0.0 \
  typer==0.29.2 click==8.5.1
"$folder/venv/bin/python" -m pip install -qq --no-deps speculators==0.9.0 hs-connectors==0.9.0
cat >"$folder/probe.py" <<'PROBE'
import torch
from speculators import DFlashDraftModel, DFlashSpeculatorConfig, SpeculatorsConfig, VerifierConfig
from speculators.losses.eager import kl_div_loss
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import Qwen3Config

BLOCK, CONTEXT, VOCABULARY, DRAFTED, HIDDEN = 4, 32, 64, 16, 32
layer = Qwen3Config(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)
layer._attn_implementation = "eager"
config = DFlashSpeculatorConfig(
    transformer_layer_config=layer, draft_vocab_size=DRAFTED, block_size=BLOCK, aux_hidden_state_layer_ids=[1, 2],
    mask_token_id=63,
    speculators_config=SpeculatorsConfig(
        algorithm="dflash", proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=BLOCK - 1)],
        default_proposal_method="greedy", verifier=VerifierConfig(name_or_path=None, architectures=[]),
    ),
)
torch.manual_seed(0)
drafter = DFlashDraftModel(config)
drafted = torch.arange(VOCABULARY) < DRAFTED
drafter.load_vocab_mappings(drafted, torch.zeros(DRAFTED, dtype=torch.long))
head = torch.zeros(VOCABULARY, HIDDEN)  # the target's: token 40 before token 0 before the others
head[40], head[0] = 2, 1
with torch.no_grad():
    drafter.embed_tokens.weight.normal_()
    drafter.verifier_lm_head.weight.copy_(head[drafted])
    drafter.lm_head.weight.zero_()  # all logits are equal, and the first is taken
    for norm in (drafter.norm, drafter.verifier_norm):
        norm.weight.fill_(1)
states = torch.ones(1, CONTEXT, HIDDEN)
said = (drafter.verifier_norm(states) @ head.T).argmax(-1)
_, _, metrics = drafter(
    hidden_states=torch.randn(1, CONTEXT, 2 * HIDDEN), input_ids=said, loss_mask=torch.ones(1, CONTEXT),
    verifier_last_hidden_states=states, document_ids=torch.zeros(1, CONTEXT, dtype=torch.long), max_anchors=8,
    loss_config={"kl_div": (kl_div_loss, 1.0)},
)
accuracy, eal = ((metrics[f"{name}_sum"] / metrics[f"{name}_total"]).item() for name in ("full_acc", "eal"))
print(f"target says {said.unique().tolist()}, drafted can be 0 to {DRAFTED - 1}, drafter says [0]")
print(f"accuracy {accuracy}, eal {eal}; a server accepts 0 drafts, which is an eal of 1.0")
assert said.unique().tolist() == [40], "the target is made otherwise"
assert (accuracy, eal) == (1.0, BLOCK), "tokens outside the draft vocabulary are counted as wrong now"
PROBE
TORCHDYNAMO_DISABLE=1 HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
