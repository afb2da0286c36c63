"""Qwen3.5's own MTP head, read from its target's folder: against transformers' parts, and lossless."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5DecoderLayer,
    Qwen3_5RMSNorm,
    Qwen3_5TextRotaryEmbedding,
)
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import (
    Qwen3_5MoeDecoderLayer,
    Qwen3_5MoeRMSNorm,
    Qwen3_5MoeTextRotaryEmbedding,
)
from transformers.models.qwen3_next.modeling_qwen3_next import (
    Qwen3NextDecoderLayer,
    Qwen3NextRMSNorm,
    Qwen3NextRotaryEmbedding,
)

from against_transformers import save_and_load
from flashdraft.batch import ForwardBatch
from flashdraft.cache.dense_source import DenseSource
from flashdraft.checkpoint.load import load_own_mtp, load_target
from flashdraft.errors import CheckpointError
from flashdraft.generate import generate
from flashdraft.llm import LLM
from flashdraft.models.base import FINAL_HIDDEN, TargetModel
from flashdraft.models.mtp import MTPConfig, MTPModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.mtp import MTPDrafter
from models.test_experts import DELTA, SHAPE
from models.test_qwen3_5 import STD, flat, nested
from toys import llama_config

SPARSE = {**SHAPE, **DELTA}
KINDS = [
    (Qwen3_5ForCausalLM, flat()),
    (Qwen3_5ForConditionalGeneration, nested(tied=False)),
    (Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig(**SPARSE)),
    (Qwen3NextForCausalLM, Qwen3NextConfig(**SPARSE)),
]
# transformers' layer, norm and rotation of a model_type.
PARTS: dict[str, tuple[Any, Any, Any]] = {
    "qwen3_5_text": (Qwen3_5DecoderLayer, Qwen3_5RMSNorm, Qwen3_5TextRotaryEmbedding),
    "qwen3_5_moe_text": (Qwen3_5MoeDecoderLayer, Qwen3_5MoeRMSNorm, Qwen3_5MoeTextRotaryEmbedding),
    "qwen3_next": (Qwen3NextDecoderLayer, Qwen3NextRMSNorm, Qwen3NextRotaryEmbedding),
}


class WrittenOut(nn.Module):
    """The head of Qwen3.5 out of transformers' layers, by the checkpoint's names."""

    def __init__(self, text_config: Any) -> None:
        super().__init__()
        size, eps = text_config.hidden_size, text_config.rms_norm_eps
        layer, norm, rotary = PARTS[text_config.model_type]
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = (
            norm(size, eps=eps) for _ in range(3)
        )
        self.fc = nn.Linear(2 * size, size, bias=False)
        attends = text_config.layer_types.index("full_attention")
        self.layers = nn.ModuleList([layer(text_config, attends)])
        self.rotary = rotary(text_config)
        self.has_sections = text_config.model_type != "qwen3_next"

    def forward(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """[1, num_tokens, hidden_size] of a whole text, less its first token -> the same."""
        joined = torch.cat((self.pre_fc_norm_embedding(embeddings), self.pre_fc_norm_hidden(hidden)), -1)
        count = embeddings.shape[1]
        positions = torch.arange(count)[None]
        causal = torch.full((count, count), float("-inf")).triu(1)[None, None]
        rope = self.rotary(joined, positions[None].expand(3, -1, -1) if self.has_sections else positions)
        return self.norm(self.layers[0](self.fc(joined), rope, attention_mask=causal, position_ids=positions))


def save_with_head(folder: Path, kind: Any, config: Any) -> tuple[Any, TargetModel, WrittenOut]:
    """A target's folder as published: the head's tensors in a shard of their own."""
    theirs, ours = save_and_load(folder, kind, config, STD)
    text_config = config.get_text_config()
    text_config._attn_implementation = "eager"
    head = WrittenOut(text_config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in head.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_((0.1 if parameter.dim() == 1 else STD) * noise)
    add_tensors(folder, {f"mtp.{name}": value for name, value in head.state_dict().items()})
    return theirs, ours, head


def add_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model-mtp.safetensors")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] |= dict.fromkeys(tensors, "model-mtp.safetensors")
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(("kind", "config"), KINDS, ids=["flat", "nested", "sparse", "next"])
@torch.inference_mode()
def test_drafting_equals_the_written_out_head(tmp_path: Path, kind: Any, config: Any) -> None:
    theirs, ours, reference = save_with_head(tmp_path, kind, config)
    head = load_own_mtp(tmp_path, ours, dtype="float32")
    ids = torch.randint(0, 97, (1, 60), generator=torch.Generator().manual_seed(2))
    language = theirs.get_decoder()
    final = language(input_ids=ids).last_hidden_state
    hidden = ours.forward(
        ForwardBatch.of_row(ids[0].tolist(), 0), ours.new_cache(1, 60), (FINAL_HIDDEN,)
    ).features
    assert hidden is not None
    assert (hidden - final).abs().max() <= 1e-4
    # Served: the text but for its last 20 tokens is verified; these are the anchor and the steps' tokens.
    cache = head.new_cache(1, 60)
    positions = torch.arange(60)[None]
    embeddings = ours.embed(ids)
    before = torch.cat((torch.zeros_like(hidden[:, :1]), hidden[:, :-1]), dim=1)
    [(k, v)] = head.context(embeddings[:, :40], before[:, :40], positions[:, :40])
    cache.layers[0].stage(k, v, positions[:, :40], 40)
    state, logits = hidden[:, 39:40], []
    expected_hidden = final[:, :40]
    for place in range(40, 60):
        mask = torch.arange(place + 1)[None, None] > 0
        own = slice(place, place + 1)
        source = DenseSource(cache.layers[0], positions[:, own], place + 1, mask)
        state = head(embeddings[:, own], state, positions[:, own], source)
        logits.append(ours.logits(state[0, 0]))
        out = reference(language.embed_tokens(ids[:, 1 : place + 1]), expected_hidden)
        expected_hidden = torch.cat((expected_hidden, out[:, -1:]), dim=1)
        expected = theirs.lm_head(out[0, -1])
        assert (logits[-1] - expected).abs().max() <= 1e-4
    assert torch.stack(logits).argmax(-1).unique().numel() > 3, "the toy says nothing"


@pytest.mark.parametrize(("kind", "config"), KINDS[2:], ids=["sparse", "next"])
def test_experts_one_by_one(tmp_path: Path, kind: Any, config: Any) -> None:
    """As Qwen3-Next and FP8 checkpoints store them."""
    _, ours, head = save_with_head(tmp_path, kind, config)
    stacked = load_own_mtp(tmp_path, ours, dtype="float32").state_dict()
    tensors = {f"mtp.{name}": value for name, value in head.state_dict().items()}
    prefix = "mtp.layers.0.mlp.experts"
    gate_up, down = tensors.pop(f"{prefix}.gate_up_proj"), tensors.pop(f"{prefix}.down_proj")
    for i in range(len(down)):
        gate, up = gate_up[i].chunk(2)
        parts = {"gate": gate, "up": up, "down": down[i]}
        tensors |= {f"{prefix}.{i}.{name}_proj.weight": part.contiguous() for name, part in parts.items()}
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if not k.startswith("mtp.")}
    file.write_text(json.dumps(index))
    add_tensors(tmp_path, tensors)
    one_by_one = load_own_mtp(tmp_path, ours, dtype="float32").state_dict()
    assert all(torch.equal(one_by_one[name], tensor) for name, tensor in stacked.items())


def test_50_greedy_answers_equal_plain_decodings(tmp_path: Path) -> None:
    _, ours, _ = save_with_head(tmp_path, *KINDS[0])
    drafter = MTPDrafter(load_own_mtp(tmp_path, ours, dtype="float32"), ours)
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    rng = random.Random(1)
    for i in range(50):
        prompt = [rng.randrange(97) for _ in range(rng.randrange(1, 20))]
        plain = generate(ours, None, prompt, params).token_ids
        assert generate(ours, drafter, prompt, params, 2 + i % 15).token_ids == plain


def test_the_27bs_head_has_the_published_names() -> None:
    """The ``mtp.*`` tensors of Qwen/Qwen3.5-27B as its config.json says it, without any weight."""
    hidden_size, mlp, head_dim, heads, kv_heads = 5120, 17408, 256, 24, 4
    text = Qwen3_5TextConfig(
        hidden_size=hidden_size,
        intermediate_size=mlp,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        num_hidden_layers=64,
    )
    with torch.device("meta"):
        ours = MTPModel(MTPConfig(text, 16))
    layer = {
        "input_layernorm": [hidden_size],
        "post_attention_layernorm": [hidden_size],
        "mlp.gate_proj": [mlp, hidden_size],
        "mlp.up_proj": [mlp, hidden_size],
        "mlp.down_proj": [hidden_size, mlp],
        "self_attn.q_proj": [2 * heads * head_dim, hidden_size],  # queries and gates
        "self_attn.k_proj": [kv_heads * head_dim, hidden_size],
        "self_attn.v_proj": [kv_heads * head_dim, hidden_size],
        "self_attn.o_proj": [hidden_size, heads * head_dim],
        "self_attn.q_norm": [head_dim],
        "self_attn.k_norm": [head_dim],
    }
    expected = {f"layers.0.{name}.weight": shape for name, shape in layer.items()} | {
        "fc.weight": [hidden_size, 2 * hidden_size],
        "norm.weight": [hidden_size],
        "pre_fc_norm_embedding.weight": [hidden_size],
        "pre_fc_norm_hidden.weight": [hidden_size],
    }
    assert {name: list(p.shape) for name, p in ours.named_parameters()} == expected


def test_mtp_names_the_targets_own_head(tmp_path: Path) -> None:
    _, ours, _ = save_with_head(tmp_path, *KINDS[1])
    llm = LLM(str(tmp_path), "mtp", block_size=4, dtype="float32", skip_tokenizer_init=True)
    assert isinstance(llm.drafter, MTPDrafter)
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    outputs = llm.generate([[3, 4, 5], [9, 8]], params)
    for prompt, output in zip([[3, 4, 5], [9, 8]], outputs, strict=True):
        assert output.outputs[0].token_ids == generate(ours, None, prompt, params).token_ids
        assert output.metrics.num_drafted > 0


def test_a_target_without_a_head_says_so(tmp_path: Path) -> None:
    LlamaForCausalLM(llama_config()).save_pretrained(tmp_path / "llama")
    target = load_target(tmp_path / "llama", dtype="float32")
    with pytest.raises(CheckpointError, match=r"holds no MTP head \(no mtp\.\* tensors\)"):
        load_own_mtp(tmp_path / "llama", target)
    _, ours, head = save_with_head(tmp_path, *KINDS[0])
    tensors = {f"mtp.{name}": value for name, value in head.state_dict().items()}
    add_tensors(tmp_path, {name: value for name, value in tensors.items() if "q_norm" not in name})
    with pytest.raises(CheckpointError):
        load_own_mtp(tmp_path, ours)
    add_tensors(tmp_path, {**tensors, "mtp.fc.weight": torch.zeros(48, 48)})
    with pytest.raises(CheckpointError, match=r"fc\.weight \[48, 48\] \(config: \[48, 96\]\)"):
        load_own_mtp(tmp_path, ours)
