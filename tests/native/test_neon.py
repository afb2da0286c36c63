"""The path of ARM CPUs, compiled by a cross compiler and run by an emulator, against the paths of this CPU."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flashdraft.native import library as library_file
from flashdraft.native.library import PATHS, CpuPath, library, runnable_paths

CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SOURCE = Path(__file__).with_name("whole_step.cpp")
[NEON] = [path for path in PATHS if path.name == "neon"]
MISSING = [name for name in (CROSS, EMULATOR) if shutil.which(name) is None]

pytestmark = [
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{' and '.join(MISSING)} missing (Debian: apt-get install g++-aarch64-linux-gnu qemu-user)",
    ),
    pytest.mark.skipif(not runnable_paths() or library() is None, reason="no fast CPU path on this machine"),
]


def logits(compiler: str, path: CpuPath, folder: Path, *run_by: str) -> Tensor:
    """What the program says, [kinds of weights, numbers], compiled for ``path``."""
    program = folder / path.name
    include = f"-I{Path(library_file.__file__).parent}"
    options = ("-std=c++20", "-O1", "-static", "-pthread", *path.options, include)
    subprocess.run([compiler, *options, str(SOURCE), "-o", str(program)], check=True)
    run = subprocess.run([*run_by, str(program)], check=True, capture_output=True, text=True)
    return torch.tensor([float(line) for line in run.stdout.split()]).view(3, -1)


def test_a_whole_step_on_arm_is_what_it_is_here(tmp_path: Path) -> None:
    compiler = library_file._compiler()
    assert compiler
    here = logits(compiler, runnable_paths()[-1], tmp_path)
    arm = logits(CROSS, NEON, tmp_path, EMULATOR, "-cpu", "max")
    for ours, theirs in zip(here, arm, strict=True):
        assert ours.std() > 0.01
        # Keys and values are rounded to 8 bits of mantissa, activations in 8 bits to steps: ties go either way.
        assert (ours - theirs).abs().max() < 0.02 * ours.abs().max()
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.9999
