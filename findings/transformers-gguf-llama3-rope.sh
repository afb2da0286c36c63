#!/usr/bin/env bash
# transformers 5.23.0 drops the tensor rope_freqs.weight when it loads a GGUF file (gguf_file=...), the only place where
# llama.cpp's converter writes Llama 3.1's rope scaling: the model gets plain RoPE, its weights are equal and its logits
# are not. No error; the log speaks of keys that were not considered, of this tensor it says nothing. Qwen3's YaRN,
# which GGUF keeps in the keys rope.scaling.*, goes the same way. For us: a GGUF target's reference is `flashdraft
# convert --to hf`, which proves the scaling by those factors, not transformers' own reading.
#
# Seen (transformers 5.23.0, gguf 0.19.0, torch 2.13.0 on a CPU, Python 3.11):
#   Llama          rope default, read default  largest difference of logits 0.00
#   Llama 3.1      rope llama3, read default   largest difference of logits 8.74
#   Qwen3, YaRN    rope yarn, read default     largest difference of logits 4.80
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq \
  torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 gguf==0.19.0 numpy==2.4.6
cat >"$folder/probe.py" <<'PROBE'
import sys
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

NAMES = {  # GGUF's names of a layer's tensors
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
THETA = 10000.0


def gguf_name(name):
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{NAMES[stem]}.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def interleaved(name, weight, heads):
    """Query and key weights of Llama as llama.cpp's converter lays them out."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    rows = heads["q_proj" if "q_proj" in name else "k_proj"]
    return weight.reshape(rows, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, architecture, scaling=None):
    """``model`` as llama.cpp's converter writes it: the scaling of Llama 3.1 is a tensor, YaRN is keys."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    if scaling == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)
    if scaling == "llama3":
        plain = 1 / THETA ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        stored = interleaved(name, weight, heads) if architecture == "llama" else weight
        writer.add_tensor(gguf_name(name), stored.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model(cls, config, head_dim, rope):
    torch.manual_seed(0)
    made = config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=head_dim, max_position_embeddings=512, initializer_range=0.3,
        rope_parameters={"rope_theta": THETA, **rope},
    )
    return cls(made).eval()


folder = Path(sys.argv[0]).parent
ids = torch.randint(0, 60, (1, 40), generator=torch.Generator().manual_seed(3))
llama, qwen = (LlamaForCausalLM, LlamaConfig, 8), (Qwen3ForCausalLM, Qwen3Config, 128)
yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
for name, kind, architecture, rope, scaling in [
    ("Llama", llama, "llama", {"rope_type": "default"}, None),
    ("Llama 3.1", llama, "llama", {"rope_type": "llama3", **LLAMA3}, "llama3"),
    ("Qwen3, YaRN", qwen, "qwen3", yarn, "yarn"),
]:
    made = model(*kind, rope)
    write(folder / "model.gguf", made, architecture, scaling)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf").eval()
    weights = read.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in made.state_dict().items()), "weights differ"
    with torch.no_grad():
        error = (read(ids).logits - made(ids).logits).abs().max().item()
    found = read.config.rope_parameters["rope_type"]
    said = f"rope {rope['rope_type']}, read {found}"
    print(f"{name:14} {said:27} largest difference of logits {error:.2f}")
    assert found == "default" and (error < 1e-4) == (scaling is None), "rope scaling is read otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py" 2>/dev/null
