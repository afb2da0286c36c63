"""Every test: one thread, and memory that nobody wrote holds NaN."""

import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # for processes that a test starts; tiny models are fastest on one thread

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic mode asks for on CUDA

import pytest
import torch

torch.set_num_threads(1)
# Deterministic mode is what makes torch.empty come filled: a read of unwritten memory shows as NaN.
torch.use_deterministic_algorithms(True)
assert torch.utils.deterministic.fill_uninitialized_memory
assert torch.empty(8).isnan().all()


@pytest.fixture(autouse=True)
def no_kept_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test measures what its steps cost: nothing comes from the user's cache, and nothing goes there."""
    monkeypatch.setattr("flashdraft.engine.kept_costs.cache_folder", lambda: Path("/dev/null"))
