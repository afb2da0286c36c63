"""The target's features for training: computed at every step, or once and kept on disk; whichever is cheaper here."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flashdraft.data.feature_cache import FeatureCache, FeatureShape, bytes_held, digest
from flashdraft.data.loader import PackedRows
from flashdraft.errors import UsageError
from flashdraft.models.base import FINAL_HIDDEN, TargetModel
from flashdraft.train.anchors import draw_blocks
from flashdraft.train.config import TrainConfig
from flashdraft.train.forward import Network, block_hidden, target_features

FEATURES = ("auto", "fly", "cache")
_FREE_SHARE = 0.9  # of the free disk, at most
_PROBES = 2  # the second is timed


@dataclass(frozen=True)
class FeaturePlan:
    """What both ways cost here, measured on a step; ``cached``: the cheaper one that the disk has room for."""

    cached: bool
    num_bytes: int  # of the cache
    free_bytes: int  # on its disk, with what an earlier run took for it
    num_steps: int  # of the run
    num_fill_steps: int  # to fill the cache, once
    compute_s: float  # a step's features, by the target
    write_s: float  # the same to disk
    read_s: float  # the same from it
    fly_s: float  # all features of the run, computed at every step
    cache_s: float  # the cache filled once and read at every step


def wanted_layers(drafter: Network, config: TrainConfig) -> tuple[int, ...]:
    """The target's outputs that a step needs: the drafter's features, and the last one where it is distilled."""
    return (*drafter.config.target_layer_ids, *((FINAL_HIDDEN,) if config.distill > 0 else ()))


def feature_cache(
    how: str,
    target: TargetModel,
    drafter: Network,
    rows: PackedRows,
    config: TrainConfig,
    folder: Path,
    made_of: dict[str, Any],
    stop: Callable[[], bool] = lambda: False,
) -> tuple[FeatureCache | None, dict[str, Any]]:
    """The filled cache in ``folder``, or None where features are computed at every step; and what was planned.

    ``how``: "fly", "cache" or "auto" (whichever is cheaper). ``made_of``: what names the target. ``stop``: asked while
    it is filled; the next call goes on with what is there. Raises UsageError for another word and for a disk that is
    too small, DataError for a folder of other features.
    """
    if how not in FEATURES:
        raise UsageError(f"--features is {how!r}; expected one of {', '.join(FEATURES)}")
    if how == "fly":
        return None, {"features": how}
    layers = wanted_layers(drafter, config)
    shape, free_bytes = _shape(target, rows, layers), _free_bytes(folder)
    if shape.num_bytes > free_bytes and how == "cache":
        raise UsageError(
            f"the features take {shape.num_bytes / 1e9:.1f} GB and {folder} has {free_bytes / 1e9:.1f} GB free;"
            " free some, or use --features fly"
        )
    if shape.num_bytes > free_bytes:  # nothing is tried on such a disk
        return None, {"features": "fly", "num_bytes": shape.num_bytes, "free_bytes": free_bytes}
    told: dict[str, Any] = {"features": "cache", "num_bytes": shape.num_bytes, "free_bytes": free_bytes}
    # What an earlier run took for the cache may leave no room to measure in: that is gone on with.
    if free_bytes - bytes_held(folder) >= _shape(target, _first(rows, config), layers).num_bytes:
        plan = plan_features(target, drafter, rows, config, folder)
        told = {"features": "cache" if plan.cached else "fly", **asdict(plan)}
        if how == "auto" and not plan.cached:
            return None, told
    cache = FeatureCache(folder, shape, made_of | {"layers": list(layers), "rows": digest(rows)})
    while not cache.is_whole and not stop():
        ends = min(cache.num_filled + config.rows_per_step, len(rows))
        index = torch.arange(cache.num_filled, ends, device=rows.token_ids.device)
        cache.append(target_features(target, rows.rows(index), layers))
    return cache, told | {"features": "cache"}


def plan_features(
    target: TargetModel, drafter: Network, rows: PackedRows, config: TrainConfig, folder: Path
) -> FeaturePlan:
    """Measure a step's features by the target, to disk and from it, and reckon what the run would cost each way."""
    layers = wanted_layers(drafter, config)
    shape = _shape(target, rows, layers)
    some = _first(rows, config)
    count, index = len(some), torch.arange(len(some), device=rows.token_ids.device)
    for _ in range(_PROBES):
        compute_s, features = _timed(target, lambda: target_features(target, some, layers))
    free_bytes = _free_bytes(folder)
    probed = folder.with_name(folder.name + ".probe")
    shutil.rmtree(probed, ignore_errors=True)  # of a run that was killed just here
    probe = FeatureCache(probed, _shape(target, some, layers), {})
    try:
        write_s, _ = _timed(target, lambda: probe.append(features))
        read_s, _ = _timed(target, lambda: probe.read(index, target.device))
    finally:
        shutil.rmtree(probe.folder)
    num_steps = _num_steps(target, drafter, some, features, config, compute_s)
    num_fill_steps = -(-len(rows) // count)
    fly_s = num_steps * compute_s
    cache_s = num_fill_steps * (compute_s + write_s) + num_steps * read_s
    cached = cache_s < fly_s and shape.num_bytes <= free_bytes
    figures = num_steps, num_fill_steps, compute_s, write_s, read_s, fly_s, cache_s
    return FeaturePlan(cached, shape.num_bytes, free_bytes, *figures)


def _first(rows: PackedRows, config: TrainConfig) -> PackedRows:
    """The rows of the first step, which are measured."""
    return rows.rows(slice(config.rows_per_step))


def _free_bytes(folder: Path) -> int:
    """What a cache in ``folder`` may take: of its disk, and what an earlier run took for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return int(shutil.disk_usage(folder.parent).free * _FREE_SHARE) + bytes_held(folder)


def _shape(target: TargetModel, rows: PackedRows, layers: Sequence[int]) -> FeatureShape:
    num_rows, seq_len = rows.token_ids.shape
    return FeatureShape(num_rows, seq_len, len(layers) * target.config.hidden_size, target.dtype)


def _num_steps(
    target: TargetModel,
    drafter: Network,
    rows: PackedRows,
    features: torch.Tensor,
    config: TrainConfig,
    compute_s: float,
) -> int:
    """Steps of the run: those of its blocks, or what its minutes leave time for."""
    by_blocks = -(-config.total_blocks // (config.rows_per_step * config.blocks_per_row))
    if config.max_minutes <= 0:
        return by_blocks
    own = features[..., : len(drafter.config.target_layer_ids) * target.config.hidden_size].contiguous()
    generator = torch.Generator(device=target.device).manual_seed(config.seed)
    blocks = draw_blocks(rows, config.blocks_per_row, config.block_size, generator)

    def learn() -> None:
        block_hidden(target, drafter, rows, own, blocks).float().square().mean().backward()  # type: ignore[no-untyped-call]

    for _ in range(_PROBES):
        learn_s, _ = _timed(target, learn)
    for parameter in drafter.parameters():
        parameter.grad = None
    return min(by_blocks, max(int(60 * config.max_minutes / (compute_s + learn_s)), 1))


def _timed(target: TargetModel, work: Any) -> tuple[float, Any]:
    """Seconds of ``work``, to the end on the target's device, and what it gave."""
    _wait(target)
    started = time.perf_counter()
    result = work()
    _wait(target)
    return time.perf_counter() - started, result


def _wait(target: TargetModel) -> None:
    if target.device.type == "cuda":
        torch.cuda.synchronize(target.device)
