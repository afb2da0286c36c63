"""Features on disk: what is read is what was computed, and a run with them is the run without."""

import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import flashdraft.data.feature_cache as module
from flashdraft.data.feature_cache import FeatureCache, FeatureShape, bytes_held, digest
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document
from flashdraft.errors import DataError, UsageError
from flashdraft.models.dflash import DFlashModel
from flashdraft.train.config import TrainConfig
from flashdraft.train.features import feature_cache, plan_features
from flashdraft.train.trainer import Trainer
from toys import toy_dflash, toy_target

CONFIG = TrainConfig(
    block_size=8, seq_len=128, rows_per_step=2, blocks_per_row=16, total_blocks=32 * 24, lr=5e-3,
    eval_minutes=60.0, served_prompts=0,
)  # fmt: skip


def some_rows(seed: int = 0) -> PackedRows:
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randint(90, (9, 60), generator=generator).tolist()
    return pack([Document(str(i), "toy", 0.0, text[:9], text[9:], "") for i, text in enumerate(texts)], 128)


ROWS = some_rows()
SHAPE = FeatureShape(len(ROWS), 128, 6, torch.bfloat16)


def test_rows_come_back_to_the_bit_over_shards_and_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 2 * SHAPE.row_bytes)
    values = torch.randn(len(ROWS), 128, 6).bfloat16()
    FeatureCache(tmp_path, SHAPE, {"target": "toy"}).append(values[:3])
    cache = FeatureCache(tmp_path, SHAPE, {"target": "toy"})
    assert (cache.num_filled, cache.is_whole) == (3, False)
    cache.append(values[3:])
    assert cache.is_whole
    assert len(list(tmp_path.glob("*.bin"))) == -(-len(ROWS) // 2) > 1
    index = torch.tensor([4, 0, 3, 3])
    assert torch.equal(FeatureCache(tmp_path, SHAPE, {"target": "toy"}).read(index), values[index])
    next(tmp_path.glob("*.bin")).unlink()
    with pytest.raises(DataError, match="missing or cut short"):
        FeatureCache(tmp_path, SHAPE, {"target": "toy"})


@pytest.mark.parametrize(
    ("shape", "made_of"),
    [(SHAPE, {"target": "another"}), (FeatureShape(len(ROWS), 128, 6, torch.float32), {"target": "toy"})],
)
def test_other_features_are_told(tmp_path: Path, shape: FeatureShape, made_of: dict[str, Any]) -> None:
    FeatureCache(tmp_path, SHAPE, {"target": "toy"}).append(torch.zeros(1, 128, 6))
    with pytest.raises(DataError, match="holds the features of other rows"):
        FeatureCache(tmp_path, shape, made_of)


@pytest.mark.parametrize("content", ["", '{"shape": [1', "[]", '{"num_filled": "many"}'])
def test_an_index_that_was_cut_is_told_with_the_mend(tmp_path: Path, content: str) -> None:
    FeatureCache(tmp_path, SHAPE, {"target": "toy"}).append(torch.zeros(1, 128, 6))
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(DataError, match=r"features\.json: cannot be read .*; delete .*, it is made anew"):
        FeatureCache(tmp_path, SHAPE, {"target": "toy"})


def test_other_rows_have_another_digest() -> None:
    assert digest(ROWS) == digest(some_rows())
    assert digest(ROWS) != digest(some_rows(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("distill", [0.0, 0.5])
def test_a_cached_run_is_the_same_to_the_bit(tmp_path: Path, dtype: torch.dtype, distill: float) -> None:
    target = toy_target().to(dtype).requires_grad_(False)
    config = TrainConfig(**{**CONFIG.__dict__, "distill": distill})
    runs: dict[str, tuple[list[Any], DFlashModel]] = {}
    for how in ("fly", "cache"):
        drafter, folder = toy_dflash(target).to(dtype), tmp_path / how
        cache, told = feature_cache(how, target, drafter, ROWS, config, folder / "features", {})
        assert told["features"] == how
        lines: list[dict[str, Any]] = []
        trainer = Trainer(target, drafter, ROWS, {}, config, folder, cache)
        trainer.train(lines.append)
        runs[how] = [line["loss"] for line in lines if "loss" in line], drafter
    assert runs["fly"][0] == runs["cache"][0] != []
    for (name, a), (_, b) in zip(
        runs["fly"][1].state_dict().items(), runs["cache"][1].state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_plan_counts_bytes_and_steps_and_takes_the_cheaper(tmp_path: Path) -> None:
    target = toy_target().requires_grad_(False)
    drafter = toy_dflash(target)
    plan = plan_features(target, toy_dflash(target), ROWS, CONFIG, tmp_path / "features")
    assert plan.num_bytes == len(ROWS) * 128 * 2 * 48 * 4  # two layers of 48 floats
    assert (plan.num_steps, plan.num_fill_steps) == (24, -(-len(ROWS) // 2))
    assert plan.fly_s == pytest.approx(24 * plan.compute_s)
    assert plan.cached == (plan.cache_s < plan.fly_s)
    assert not list(tmp_path.iterdir())
    short = TrainConfig(**{**CONFIG.__dict__, "total_blocks": 32})  # one step: filling never pays
    cache, told = feature_cache("auto", target, drafter, ROWS, short, tmp_path / "features", {})
    assert (cache, told["features"]) == (None, "fly")
    with pytest.raises(UsageError, match="--features is 'disk'"):
        feature_cache("disk", target, drafter, ROWS, CONFIG, tmp_path, {})


def test_a_run_that_was_killed_while_it_measured_does_not_stop_the_next(tmp_path: Path) -> None:
    target = toy_target().requires_grad_(False)
    left = FeatureCache(tmp_path / "features.probe", SHAPE, {})
    left.append(torch.zeros(1, 128, 6))
    plan = plan_features(target, toy_dflash(target), ROWS, CONFIG, tmp_path / "features")
    assert plan.num_bytes > 0
    assert not left.folder.exists()


def test_all_room_is_taken_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of a sparse file that finds no room when it is written to ends the process."""
    monkeypatch.setattr(module, "SHARD_BYTES", 3 * SHAPE.row_bytes)
    for _ in range(2):
        FeatureCache(tmp_path, SHAPE, {"target": "toy"})
        for file in tmp_path.glob("*.bin"):
            assert 512 * file.stat().st_blocks >= file.stat().st_size > 0
            sparse = file.read_bytes()
            file.write_bytes(b"")
            os.truncate(file, len(sparse))  # as an earlier version left it
    assert bytes_held(tmp_path) < SHAPE.num_bytes


def test_a_disk_without_room_is_told_with_the_mend(tmp_path: Path) -> None:
    shape = FeatureShape(64, 128, 64, torch.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (shape.num_bytes // 2, hard))
    try:
        with pytest.raises(
            DataError, match=r"no room for its 0\.0 GB .*free some and delete .*--features fly"
        ):
            FeatureCache(tmp_path, shape, {"target": "toy"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_whole_cache_is_found_again_on_a_disk_that_it_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = toy_target().requires_grad_(False)
    drafter, folder = toy_dflash(target), tmp_path / "features"
    first, _ = feature_cache("cache", target, drafter, ROWS, CONFIG, folder, {})
    assert first is not None
    full = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    again, told = feature_cache("cache", target, drafter, ROWS, CONFIG, folder, {})
    assert again is not None
    assert again.is_whole
    assert told["free_bytes"] >= first.shape.num_bytes


@pytest.mark.parametrize("how", ["cache", "auto"])
def test_a_cache_that_left_no_room_to_measure_in_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The disk is full of what the stopped run has taken for it."""
    target = toy_target().requires_grad_(False)
    given = target, toy_dflash(target), ROWS, CONFIG, tmp_path / "features", {}
    stopped, _ = feature_cache("cache", *given, lambda: True)
    assert stopped is not None
    full = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    reserve = module._reserve

    def on_full_disk(file: Path, num_bytes: int) -> None:
        if file.parent != tmp_path / "features":
            raise DataError("no room")
        reserve(file, num_bytes)

    monkeypatch.setattr(module, "_reserve", on_full_disk)
    cache, told = feature_cache(how, *given)
    assert cache is not None
    assert (cache.is_whole, told["features"], told["num_bytes"]) == (True, "cache", stopped.shape.num_bytes)


def test_filling_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    target = toy_target().requires_grad_(False)
    drafter, pressed = toy_dflash(target), iter([False, True])
    given = "cache", target, drafter, ROWS, CONFIG, tmp_path / "features", {}
    cache, _ = feature_cache(*given, lambda: next(pressed))
    assert cache is not None
    assert cache.num_filled == CONFIG.rows_per_step < len(ROWS)
    again, _ = feature_cache(*given)
    assert again is not None
    assert again.is_whole


def test_a_disk_that_is_too_small_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = toy_target().requires_grad_(False)
    given = target, toy_dflash(target), ROWS, CONFIG, tmp_path / "features", {}
    full = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        cache, told = feature_cache("auto", *given)
        with pytest.raises(UsageError, match=r"features take 0\.0 GB and .* has 0\.0 GB free; free some"):
            feature_cache("cache", *given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (cache, told["features"]) == (None, "fly")
