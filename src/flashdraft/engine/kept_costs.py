"""Measured step costs, kept in the user's cache from one process to the next: the first answer need not wait for them.

A file holds the costs of one machine, build, target, drafter, number of threads, backend and shape, all of which are
its name. What is not a file as it is written here counts as none. Costs of recorded steps are not kept: to measure
them is to record the steps.
"""

import json
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import torch
from torch import nn

from flashdraft.control.step_costs import Curve, StepCosts
from flashdraft.engine.model_runner import ModelRunner
from flashdraft.engine.recorded_trees import NO_TREES, FewTrees
from flashdraft.engine.step_timing import measure_costs
from flashdraft.native.library import build_name
from flashdraft.provenance import device_name
from flashdraft.user_cache import cache_folder

_CURVES = ("verify", "draft")
_PARTS = "num_tokens", "seconds", "row_s"  # ``pace`` is of a moment
# Steps of each kind that are tried first: what a busy moment's measurement said, now or in an earlier process, passes.
_PLAIN_TRIALS, _DRAFT_TRIALS = 1, 3
_MOST = 1e6  # of seconds and tokens
_MOST_BYTES = 1 << 16


def kept_or_measured(
    runner: ModelRunner, max_block: int, num_rows: int, trees: FewTrees = NO_TREES
) -> StepCosts:
    """What an earlier process kept of such steps, or what :func:`measure_costs` finds now, kept for the next one."""
    if not _are_kept(runner):
        return measure_costs(runner, max_block, num_rows, trees=trees)
    costs = _read(_file(runner, max_block, num_rows))
    if costs is None:
        costs = measure_costs(runner, max_block, num_rows)
        _keep(costs, runner, max_block, num_rows)
    costs.is_ragged = runner.backend.is_ragged
    costs.plain_trials, costs.draft_trials = _PLAIN_TRIALS, _DRAFT_TRIALS
    return costs


def _keep(costs: StepCosts, runner: ModelRunner, max_block: int, num_rows: int) -> None:
    """Have the next process start from ``costs``, where its cache can be written."""
    said: dict[str, Any] = {}
    for name in _CURVES:
        curve = getattr(costs, name)
        said[name] = {one: np.asarray(getattr(curve, one)).tolist() for one in _PARTS}
    file = _file(runner, max_block, num_rows)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with NamedTemporaryFile("w", dir=file.parent, delete=False) as part:
            json.dump(said, part)
        os.replace(part.name, file)


def _are_kept(runner: ModelRunner) -> bool:
    return not (runner.drafts_in_rounds or runner.backend.is_recorded)


def _file(runner: ModelRunner, max_block: int, num_rows: int) -> Path:
    drafter = getattr(runner.drafter, "drafter", runner.drafter)
    asked = (
        *(device_name(str(runner.target.device)), os.cpu_count(), torch.get_num_threads()),
        *(build_name(), torch.__version__, type(runner.backend).__name__),
        *(_network(runner.target), type(drafter).__name__, _network(getattr(drafter, "model", None))),
        *(max_block, num_rows, runner.cache.page_size, len(runner.cache.slots)),
    )
    return cache_folder() / "step-costs" / f"{sha256(repr(asked).encode()).hexdigest()[:24]}.json"


def _network(model: nn.Module | None) -> str:
    """What of a network its speed depends on: its shape and how its weights are held, not their values."""
    if model is None:
        return ""
    packed = getattr(getattr(model, "native", None), "packed", None)
    held = packed.num_bytes if packed else sum(one.numel() for one in model.parameters())
    return f"{getattr(model, 'config', None)!r} {next(model.parameters()).dtype} {held}"


def _read(file: Path) -> StepCosts | None:
    """The costs in ``file``, or None where there are none that can be meant."""
    try:
        if file.stat().st_size > _MOST_BYTES:
            return None
        said = json.loads(file.read_text())
        verify, draft = (_curve(said[name]) for name in _CURVES)
        return StepCosts(verify, draft)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _curve(said: dict[str, Any]) -> Curve:
    tokens, seconds, row_s = (said[one] for one in _PARTS)
    if not tokens or len(tokens) != len(seconds) or tokens != sorted(set(tokens)):
        raise ValueError("a curve has seconds for each of its tokens, which rise")
    points = [np.array([_seconds(one) for one in values]) for values in (tokens, seconds)]
    if not np.all(points):
        raise ValueError("no tokens, or no seconds, are no step")
    return Curve(points[0], points[1], _seconds(row_s))


def _seconds(said: Any) -> float:
    if not isinstance(said, int | float) or not 0 <= said <= _MOST:
        raise ValueError(f"{said!r} is no number from 0 to {_MOST}")
    return float(said)
