"""A drafter whose weights are the mean of others': what several runs found, less the noise of each.

    python recipes/smollm2-135m/mean.py --out weights/ run-j/weights run-k/weights

Runs that go on from one another, or from one drafter, lie close enough for it (model soups, arXiv 2203.05482). A folder
counts as often as ``FOLDER=WEIGHT`` says, once without. Means are taken in float32.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FREE = "dtype", "transformers_version"  # of a config: how it was written


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """A drafter's tensors by name, from one file or from shards."""
    index = folder / INDEX
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {ONE_FILE}
    return {name: tensor for file in sorted(names) for name, tensor in load_file(folder / file).items()}


def mean(folders: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """The mean of ``folders`` by their weights, each tensor as the first one has it.

    Raises ValueError where they are not of one shape, or have other settings or tables.
    """
    (first, _), *_ = folders
    every = [(folder, tensors_of(folder), weight) for folder, weight in folders]
    wanted, config = every[0][1], _config(first)
    for folder, tensors, weight in every:
        if weight <= 0:
            raise ValueError(f"{folder} counts {weight} times; expected more than 0")
        if _config(folder) != config:
            raise ValueError(f"{folder} has another config.json than {first}; expected drafters of one kind")
        shapes, others = ({name: t.shape for name, t in some.items()} for some in (tensors, wanted))
        if shapes != others:
            names = sorted(name for name in {*shapes, *others} if shapes.get(name) != others.get(name))
            raise ValueError(
                f"{folder} and {first} differ in {', '.join(names)}; expected the same names and shapes"
            )
        for name, tensor in wanted.items():
            if not tensor.is_floating_point() and not torch.equal(tensor, tensors[name]):
                raise ValueError(
                    f"{folder} has other values of {name} than {first}; expected one draft vocabulary"
                )
    total = sum(weight for _, _, weight in every)
    made = {}
    for name, tensor in wanted.items():
        parts = [tensors[name].float() * weight for _, tensors, weight in every]
        made[name] = (
            (sum(parts[1:], parts[0]) / total).to(tensor.dtype) if tensor.is_floating_point() else tensor
        )
    return made


def _config(folder: Path) -> dict[str, object]:
    config: dict[str, object] = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in config.items() if name not in FREE}


def _counted(text: str) -> tuple[Path, float]:
    folder, _, weight = text.partition("=")
    return Path(folder), float(weight or 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=_counted, help="of drafters: FOLDER, or FOLDER=WEIGHT")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    made = mean(args.folders)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(made, args.out / ONE_FILE, metadata={"format": "pt"})
    config = args.folders[0][0] / "config.json"
    if config.resolve() != (args.out / "config.json").resolve():
        shutil.copyfile(config, args.out / "config.json")


if __name__ == "__main__":
    main()
