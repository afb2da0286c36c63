"""Every drafter format in and out, and the traps between them: each has bitten users of some engine."""

import json
from pathlib import Path

import pytest
import torch
from dflash import DFlashDraftModel
from safetensors.torch import load_file

from command_line import run_command
from flashdraft.cache.dense_source import block_masks
from flashdraft.checkpoint.convert import convert_drafter
from flashdraft.checkpoint.load import load_drafter, load_target, save_drafter
from flashdraft.data.loader import PackedRows
from flashdraft.errors import CheckpointError, UsageError
from flashdraft.generate import generate
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.train.anchors import blocks_at
from flashdraft.train.forward import block_hidden, target_features
from tiny_pair import save_tiny_pair
from toys import Alone, toy_dflash, toy_dflash2, toy_target

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}
MIXED = ("sliding_attention", "sliding_attention", "full_attention")


def mixed(target, **changes):
    values = {"num_hidden_layers": 3, "layer_types": MIXED, "sliding_window": 12, **changes}
    return toy_dflash(target, **values)


@pytest.fixture(scope="module")
def target():
    return toy_target()


@torch.inference_mode()
def served(drafter: DFlashModel, features: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """A block's hidden states behind a context, as when served."""
    context, end = features.shape[1], features.shape[1] + block.shape[1]
    cache = drafter.new_cache(1, end)
    positions = torch.arange(context)[None]
    for layer, (k, v) in zip(cache.layers, drafter.context(features, positions), strict=True):
        layer.stage(k, v, positions, context)
    cache.commit(context)
    return drafter.served(block, torch.arange(context, end)[None], end, cache)


def inputs(target, context: int, block_size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(context)
    features = torch.randn(1, context, 2 * target.config.hidden_size, generator=generator)
    return features, torch.randn(1, block_size, target.config.hidden_size, generator=generator)


def loaded_config(folder, change) -> DFlashConfig:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return load_drafter(folder, dtype="float32").config


@pytest.mark.parametrize("is_causal", [None, False, True])
@pytest.mark.parametrize("context", [1, 4, 11, 12, 13, 40])
def test_layers_see_what_z_labs_do(target, tmp_path, context, is_causal):
    """Their class on the same files, at contexts below, at and above the window."""
    drafter = mixed(target, is_causal=is_causal)
    save_drafter(drafter, tmp_path)
    theirs = DFlashDraftModel.from_pretrained(tmp_path, dtype=torch.float32)
    features, block = inputs(target, context)
    with torch.inference_mode():
        expected = theirs(torch.arange(context + 8)[None], noise_embedding=block, target_hidden=features)
    assert (served(load_drafter(tmp_path, dtype="float32"), features, block) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("from_anchor", [False, True])
@pytest.mark.parametrize("is_causal", [None, False])
def test_training_sees_what_serving_does(target, from_anchor, is_causal):
    drafter = mixed(target, window_from_anchor=from_anchor, is_causal=is_causal)
    ids = torch.randint(0, 90, (1, 64), generator=torch.Generator().manual_seed(1))
    rows = PackedRows(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))
    features = target_features(target, rows, drafter.config.target_layer_ids)
    anchors = torch.tensor([[1, 11, 12, 13, 40]])
    blocks = blocks_at(rows, anchors, torch.ones_like(anchors, dtype=torch.bool), 8)
    with torch.inference_mode():
        trained = block_hidden(target, drafter, rows, features, blocks)[0]
        for i, anchor in enumerate(anchors[0].tolist()):
            slots = torch.tensor([[int(ids[0, anchor])] + [drafter.config.mask_token_id] * 7])
            one = served(drafter, features[:, :anchor], target.embed(slots))
            assert (one[0] - trained[i]).abs().max() < 1e-4, anchor


def test_trap_window_edge(target):
    """Trainers differ by a token at slot 0 and more later: only contexts past the window tell."""
    slot, anchor = mixed(target), mixed(target, window_from_anchor=True)
    for context, differs in ((4, False), (12, True), (30, True)):
        features, block = inputs(target, context)
        difference = (served(slot, features, block) - served(anchor, features, block)).abs().max()
        assert (difference > 1e-3) == differs, context


@pytest.mark.parametrize("from_anchor", [False, True])
def test_masks_by_brute_force(target, from_anchor):
    drafter = mixed(target, window_from_anchor=from_anchor)
    for start in (3, 11, 12, 13, 30):
        masks = block_masks(drafter.config.rules, torch.arange(start, start + 8)[None], start + 8)
        assert masks[2] is None
        for slot in range(8):
            first = start - 12 if from_anchor else start + slot - 11
            seen = [key for key in range(start) if key >= first] + list(range(start, start + slot + 1))
            if not from_anchor:
                seen = [key for key in seen if key >= first]
            assert masks[0][0, slot].nonzero().flatten().tolist() == seen


def test_trap_layer_ids(target, tmp_path):
    """speculators counts the embedding as layer 0."""
    save_drafter(mixed(target), tmp_path / "z")
    convert_drafter(tmp_path / "z", "speculators", tmp_path / "s")
    raw = json.loads((tmp_path / "s" / "config.json").read_text())
    ids = load_drafter(tmp_path / "z").config.target_layer_ids
    assert raw["aux_hidden_state_layer_ids"] == [layer + 1 for layer in ids]
    assert load_drafter(tmp_path / "s", target).config.target_layer_ids == ids


@pytest.mark.parametrize("scores_first", [True, False])
def test_the_rule_of_sampled_first_slots_is_kept_in_every_format(scores_first, target, tmp_path):
    """As a field of ours in speculators' config, which its readers pass over."""
    save_drafter(toy_dflash2(target, selector_anchor_sampled=scores_first), tmp_path / "z")
    for source, to in (("z", "speculators"), ("speculators", "z-lab"), ("z-lab", "transformers")):
        convert_drafter(tmp_path / source, to, tmp_path / to)
        assert load_drafter(tmp_path / to, target).config.selector_anchor_sampled is scores_first
    raw = json.loads((tmp_path / "speculators" / "config.json").read_text())
    assert ("selector_anchor_sampled" in raw) is not scores_first


def test_trap_block_size_in_both_places(target, tmp_path):
    save_drafter(toy_dflash(target, block_size=4), tmp_path)
    assert loaded_config(tmp_path, bool).block_size == 4
    moved = loaded_config(tmp_path, lambda c: c["dflash_config"].update(block_size=c.pop("block_size")))
    assert moved.block_size == 4


def test_trap_causality(target, tmp_path):
    """is_causal goes before dflash_config.causal, and that before the layer's type."""
    save_drafter(mixed(target), tmp_path)

    def causal(change):
        return [rule.is_causal for rule in loaded_config(tmp_path, change).rules]

    assert causal(bool) == [True, True, False]
    assert causal(lambda c: c["dflash_config"].update(causal=False)) == [False] * 3
    assert causal(lambda c: c.update(is_causal=True)) == [True] * 3


def test_trap_mrope(target, tmp_path):
    """A drafter config copied from a target with images: the drafter rotates whole heads by plain positions."""
    save_drafter(toy_dflash(target), tmp_path)
    scaling = {"rope_type": "default", "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.25}
    config = loaded_config(tmp_path, lambda c: c.update(rope_scaling=scaling))
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"draft_vocab_size": 32}, r"lacks d2t, t2d, lm_head.weight"),
        ({"draft_vocab_size": 98}, r"draft_vocab_size 98 \(expected 1 to 97\)"),
        ({"speculators_model_type": "eagle3"}, r"of another kind, EAGLE-3"),
        ({"speculators_model_type": "xpress"}, r"of another kind, xPress"),
        ({"speculators_model_type": "mtp"}, r"speculators 'mtp'; expected 'dflash' or 'dflash2'"),
        ({"target_hidden_size": 64}, r"target_hidden_size is 64; expected its own hidden_size 48"),
        ({"sample_from_anchor": True}, r"asks for sample_from_anchor True"),
        ({"aux_hidden_state_layer_ids": [0, 3]}, r"target_layer_ids \[-1, 2\]"),
    ],
)
def test_speculators_that_do_not_fit(target, tmp_path, change, pattern):
    save_drafter(toy_dflash(target), tmp_path / "z")
    convert_drafter(tmp_path / "z", "speculators", tmp_path / "s")
    with pytest.raises(CheckpointError, match=pattern):
        loaded_config(tmp_path / "s", lambda c: c.update(change))
    with pytest.raises(CheckpointError, match="holds a drafter; expected a target"):
        load_target(tmp_path / "s")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"is_causal": False},
        {"window_from_anchor": True},
        {"layer_types": None, "sliding_window": None},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        {"rope_parameters": YARN},
    ],
)
def test_there_and_back_is_bit_equal(target, tmp_path, changes):
    drafter = mixed(target, **changes)
    save_drafter(drafter, tmp_path / "z")
    convert_drafter(tmp_path / "z", "speculators", tmp_path / "s")
    convert_drafter(tmp_path / "s", "z-lab", tmp_path / "back")
    for name in ("config.json", "model.safetensors"):
        first, last = ((tmp_path / folder / name).read_bytes() for folder in ("z", "back"))
        assert first == last, name
    first = load_file(tmp_path / "s" / "model.safetensors")
    assert all(torch.equal(tensor, drafter.state_dict()[name]) for name, tensor in first.items())


@torch.inference_mode()
def test_formats_draft_the_same_tokens(target, tmp_path):
    save_drafter(mixed(target, window_from_anchor=True), tmp_path / "z")
    convert_drafter(tmp_path / "z", "speculators", tmp_path / "s")
    ours = ("num_target_layers", "window_from_anchor")
    # What speculators itself writes: without our two fields its own rules hold.
    loaded_config(tmp_path / "s", lambda c: [c.pop(name) for name in ours])
    params = SamplingParams(max_tokens=40, temperature=0)
    drafts: list[list[list[int]]] = []
    for folder in ("z", "s"):
        drafter = DFlashDrafter(load_drafter(tmp_path / folder, target, dtype="float32"), target)
        state = Alone(drafter, 64)
        state.observe(list(range(20)), inputs(target, 20)[0])
        drafts.append([state.chain(anchor, 7) for anchor in range(10)])
        plain = generate(target, None, [1, 2, 3], params)
        assert generate(target, drafter, [1, 2, 3], params).token_ids == plain.token_ids
    assert drafts[0] == drafts[1]


@torch.inference_mode()
def test_specforge_and_speculators_draft_the_same_tokens(target, tmp_path):
    """The same weights under a config as SpecForge writes it and under one as speculators does."""
    drafter = toy_dflash(target)
    save_drafter(drafter, tmp_path / "f")
    convert_drafter(tmp_path / "f", "speculators", tmp_path / "s")
    config = drafter.config
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    names += (
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
        "num_target_layers",
        "block_size",
    )
    written = {name: getattr(config, name) for name in names}
    written |= {"architectures": ["DFlashDraftModel"], "model_type": "qwen3", "attention_dropout": 0.0}
    written |= {"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02}
    written |= {"attention_bias": False, "max_window_layers": 2, "rope_scaling": None, "rope_theta": 1000000}
    written |= {
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    written |= {"layer_types": ["full_attention"] * 2, "use_sliding_window": False}
    inner = {"mask_token_id": config.mask_token_id, "target_layer_ids": list(config.target_layer_ids)}
    (tmp_path / "f" / "config.json").write_text(json.dumps(written | {"dflash_config": inner}))
    drafts = []
    for folder in ("f", "s"):
        state = Alone(DFlashDrafter(load_drafter(tmp_path / folder, target, "float32"), target), 64)
        state.observe(list(range(20)), inputs(target, 20)[0])
        drafts.append([state.chain(anchor, 7) for anchor in range(10)])
    assert drafts[0] == drafts[1]


def test_command(target, tmp_path, capsys):
    save_drafter(toy_dflash(target), tmp_path / "z")
    argv = ("convert", "--draft", str(tmp_path / "z"), "--to", "speculators", "--out", str(tmp_path / "s"))
    assert run_command(argv, capsys).exit_code == 0
    assert load_drafter(tmp_path / "s", target).config == toy_dflash(target).config
    again = run_command(argv, capsys)
    assert (again.exit_code, "is not empty" in again.stderr) == (2, True)
    with pytest.raises(UsageError, match="expected z-lab, speculators or transformers"):
        convert_drafter(tmp_path / "z", "gguf", Path(tmp_path / "g"))
    full = mixed(target, is_causal=True)
    save_drafter(full, tmp_path / "causal")
    with pytest.raises(CheckpointError, match="full layers are causal"):
        convert_drafter(tmp_path / "causal", "speculators", tmp_path / "c")


def test_the_drafter_of_the_27b():
    """z-lab/Qwen3.5-27B-DFlash: five sliding layers and a full one, block_size within dflash_config."""
    config = DFlashConfig.from_dict(
        {
            "architectures": ["DFlashDraftModel"],
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "num_hidden_layers": 6,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 248320,
            "num_target_layers": 64,
            "max_position_embeddings": 262144,
            "rope_theta": 1e7,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
            "sliding_window": 4096,
            "use_sliding_window": True,
            "dflash_config": {
                "block_size": 16,
                "mask_token_id": 248070,
                "target_layer_ids": [1, 16, 31, 46, 61],
            },
        }
    )
    assert [rule.window for rule in config.rules] == [4096] * 5 + [None]
    assert [rule.is_causal for rule in config.rules] == [True] * 5 + [False]
    with torch.device("meta"):
        drafter = DFlashModel(config)
    assert len(drafter.state_dict()) == 3 + 6 * 11
    assert drafter.fc.weight.shape == (5120, 25600)


def test_dflash2_there_and_back(target, tmp_path):
    """The layout of Qwen3.8-27B-DFlash2: windows that are not causal, codebooks without .weight."""
    windows = {"layer_types": ("sliding_attention",) * 2, "sliding_window": 16}
    drafter = toy_dflash2(target, **windows)
    save_drafter(drafter, tmp_path / "z")
    told = json.loads((tmp_path / "z" / "config.json").read_text())
    assert told["architectures"] == ["DFlash2DraftModel"]
    assert told["is_causal"] is False
    inner = {
        name: told["dflash_config"][name] for name in ("conv_kernel_size", "conv_group_size", "selector_rank")
    }
    assert inner == {"conv_kernel_size": 2, "conv_group_size": 16, "selector_rank": 8}
    names = load_file(tmp_path / "z" / "model.safetensors").keys()
    assert {"candidate_selector.successor_codebook", "layers.1.mlp_conv.base_kernel"} <= names
    loaded = load_drafter(tmp_path / "z", target, dtype="float32")
    assert loaded.config == drafter.config
    convert_drafter(tmp_path / "z", "speculators", tmp_path / "s")
    said = json.loads((tmp_path / "s" / "config.json").read_text())
    assert said["speculators_model_type"] == said["speculators_config"]["algorithm"] == "dflash2"
    assert (said["selector_rank"], said["selector_top_k"], said["sliding_window_non_causal"]) == (8, 6, True)
    convert_drafter(tmp_path / "s", "z-lab", tmp_path / "back")
    for name in ("config.json", "model.safetensors"):
        first, last = ((tmp_path / folder / name).read_bytes() for folder in ("z", "back"))
        assert first == last, name


def test_what_speculators_cannot_say_of_dflash2(target, tmp_path):
    save_drafter(toy_dflash2(target, selector_rank=0), tmp_path / "conv")
    with pytest.raises(
        CheckpointError, match="conv_kernel_size 2 and selector_rank 0; expected both above 0"
    ):
        convert_drafter(tmp_path / "conv", "speculators", tmp_path / "s")
    save_drafter(toy_dflash2(target, output_multiplier=0.5), tmp_path / "scaled")
    with pytest.raises(CheckpointError, match="has output_multiplier; expected a drafter without them"):
        convert_drafter(tmp_path / "scaled", "speculators", tmp_path / "s")


@pytest.mark.parametrize("to", ["z-lab", "speculators", "transformers"])
def test_a_selector_that_projects_the_head_is_written_as_tables(target, tmp_path, to):
    save_drafter(toy_dflash2(target, selector_projects_head=True), tmp_path / "ours")
    with pytest.raises(CheckpointError, match="add --target"):
        convert_drafter(tmp_path / "ours", to, tmp_path / "none")
    name, _ = save_tiny_pair(tmp_path)
    projected = toy_dflash2(load_target(name, "float32"), selector_projects_head=True)
    torch.nn.init.normal_(projected.candidate_selector.successor_projection)
    save_drafter(projected, tmp_path / "projected")
    convert_drafter(tmp_path / "projected", to, tmp_path / "tables", name)
    loaded = load_drafter(tmp_path / "tables", load_target(name, "float32"), dtype="float32")
    assert not loaded.config.selector_projects_head
    tables = projected.candidate_selector.codebooks(load_target(name).head_weight().float())
    for found, wanted in zip(loaded.candidate_selector.codebooks(None), tables, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)  # of the target in bfloat16
