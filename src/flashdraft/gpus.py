"""Data sheets of GPUs, by name or told by their numbers."""

from dataclasses import dataclass
from math import inf

from flashdraft.errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """One GPU's data sheet: dense bfloat16 (without sparsity)."""

    bandwidth: float  # bytes a second
    peak: float  # operations a second
    link: float = 32e9  # bytes a second to its neighbours, one way; PCIe 4 where nothing is said
    memory: float = 80e9  # bytes


GPUS = {
    "A100": Gpu(2.039e12, 312e12, 300e9, 80e9),  # NVIDIA's, SXM variants
    "H20": Gpu(4.0e12, 148e12, 450e9, 96e9),
    "H100": Gpu(3.35e12, 989e12, 450e9, 80e9),
    "H200": Gpu(4.8e12, 989e12, 450e9, 141e9),
    "B200": Gpu(8.0e12, 2250e12, 900e9, 180e9),
    "L40S": Gpu(0.864e12, 362e12, memory=48e9),
    "RTX4090": Gpu(1.008e12, 165e12, memory=24e9),
}


def read_gpu(told: str) -> Gpu:
    """A GPU by name, or by its numbers: "4.8,989", with ",450" and ",141": TB/s, TFLOPS of dense bfloat16, GB/s
    of its link, GB of memory.

    Raises UsageError.
    """
    if told.upper() in GPUS:
        return GPUS[told.upper()]
    try:
        numbers = [float(part) for part in told.split(",")]
        if not 2 <= len(numbers) <= 4 or not all(0 < number < inf for number in numbers):
            raise ValueError
    except ValueError:
        raise UsageError(
            f"the GPU {told!r} is not known; expected one of {', '.join(GPUS)}, or its data sheet as TB/s,TFLOPS[,GB/s"
            " of its link[,GB]], for example 4.8,989,450,141"
        ) from None
    return Gpu(numbers[0] * 1e12, numbers[1] * 1e12, *(one * 1e9 for one in numbers[2:]))
