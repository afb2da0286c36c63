#!/usr/bin/env bash
# speculators 0.9.0 trains DFlash drafters to say the next conversation's answer. Conversations are packed behind one
# another, a block attends to its own alone, and its labels are the tokens behind the anchor, whosever they are: those
# in a prompt are left out, those of the answer after it count again. So near the end of each answer the slots behind a
# prompt shorter than a block (a question of few words in a chat template has 10 tokens) learn another conversation's
# words, which nothing that they see tells. Answers of one conversation that follow one another in a row of given
# input_ids and loss_mask are joined alike. An engineer would guess that the attention's document border holds for
# labels too. The loss that is shown, and by D-PACE the weights of the right slots, hang on which conversation is packed
# next. Nothing is raised or logged. For us: a block of flashdraft's ends where its answer does; speculators' loss is
# compared with nothing.
#
# Seen (speculators 0.9.0, transformers 5.19.0, torch 2.13.0 on a CPU, Python 3.11); an answer of 6 tokens, blocks of 16
# at each of them, and what is packed behind it:
#   nothing                                    labels 15  loss 1.7919
#   a prompt of 20 tokens, then an answer      labels 15  loss 1.7919
#   a prompt of 9 tokens, then an answer       labels 36  loss 1.3341
#   a prompt of 9 tokens, then another answer  labels 36  loss 1.3412
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
from speculators.losses.eager import ce_loss
from speculators.models.dflash.metrics import compute_metrics
from speculators.proposals.greedy import GreedyTokenProposalConfig
from speculators.train.data import CollateFn
from transformers import Qwen3Config

BLOCK, VOCABULARY, HIDDEN, ROW, PROMPT, ANSWER = 16, 64, 32, 96, 9, 6
layer = Qwen3Config(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)
layer._attn_implementation = "eager"
config = DFlashSpeculatorConfig(
    transformer_layer_config=layer, draft_vocab_size=VOCABULARY, block_size=BLOCK, aux_hidden_state_layer_ids=[1, 2],
    mask_token_id=63,
    speculators_config=SpeculatorsConfig(
        algorithm="dflash", proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=BLOCK - 1)],
        default_proposal_method="greedy", verifier=VerifierConfig(name_or_path=None, architectures=[]),
    ),
)
torch.manual_seed(0)
drafter = DFlashDraftModel(config)
with torch.no_grad():
    for weight in drafter.parameters():
        weight.normal_(std=0.2)


def conversation(prompt, answer, seed):
    """As ArrowDataset gives it."""
    torch.manual_seed(seed)
    length = prompt + answer
    return {
        "hidden_states": torch.randn(length, 2 * HIDDEN), "input_ids": torch.randint(0, 60, (length,)),
        "verifier_last_hidden_states": torch.randn(length, HIDDEN),
        "loss_mask": (torch.arange(length) >= prompt).long(),
        "lengths": torch.tensor([length]), "position_ids": torch.arange(length),
    }


first, found = conversation(PROMPT, ANSWER, 1), {}
for name, others in {
    "nothing": [],
    "a prompt of 20 tokens, then an answer": [conversation(20, 40, 2)],
    "a prompt of 9 tokens, then an answer": [conversation(9, 40, 2)],
    "a prompt of 9 tokens, then another answer": [conversation(9, 40, 3)],
}.items():
    batch = CollateFn(ROW, HIDDEN, 2, torch.float32)([first, *others])
    inputs = {key: batch[key] for key in (*first, "document_ids") if key != "lengths"}
    with torch.no_grad():  # each token of an answer gets a block, in their order: the first six are the first answer's
        _, logits, targets, trained, _ = drafter._backbone_forward(**inputs, max_anchors=ROW)
    logits, targets, trained = (each[:, : ANSWER * BLOCK] for each in (logits, targets, trained))
    loss, _ = compute_metrics(
        logits, targets, trained, BLOCK, loss_config={"ce": (ce_loss, 1.0)}, per_position_loss_weight="dpace"
    )
    found[name] = int(trained.sum()), round(loss.item(), 4)
    print(f"{name:41}  labels {found[name][0]}  loss {found[name][1]}")
alone, far, near, other = found.values()
assert alone[0] == ANSWER * (ANSWER - 1) // 2 and far == alone, "the blocks are others than was thought"
assert near[0] == other[0] > alone[0] and near[1] != other[1], "blocks end with their conversation now"
PROBE
TORCHDYNAMO_DISABLE=1 HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
