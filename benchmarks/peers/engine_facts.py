"""What vLLM and SGLang can be asked for, read from the source in their wheels: for ``flashdraft launch`` and its tests.

    pip download --no-deps vllm==0.33.0 sglang==0.5.23
    python benchmarks/peers/engine_facts.py vllm-*.whl sglang-*.whl > src/flashdraft/export/engine_facts.json

Nothing of a wheel is run. Targets: the registered classes that hand out features, vLLM's by SupportsEagle3 and SGLang's
by set_dflash_layers_to_capture, by inheritance too. Flags: those that their argument parsers are built from.
"""

import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Module = tuple[str, ast.Module]


def main(vllm_wheel: str, sglang_wheel: str) -> None:
    """Print the facts of both engines."""
    facts = {"vllm": _vllm(zipfile.ZipFile(vllm_wheel)), "sglang": _sglang(zipfile.ZipFile(sglang_wheel))}
    for name, wheel in (("vllm", vllm_wheel), ("sglang", sglang_wheel)):
        facts[name] = {"version": Path(wheel).name.split("-")[1], **facts[name]}
    print(json.dumps(facts, indent=1))


def _modules(wheel: zipfile.ZipFile, *prefixes: str) -> list[Module]:
    names = [name for name in wheel.namelist() if name.endswith(".py") and name.startswith(prefixes)]
    return [(name, ast.parse(wheel.read(name))) for name in names]


def _classes(modules: list[Module]) -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = {}
    for _, tree in modules:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def _bases(node: ast.ClassDef) -> Iterator[str]:
    for base in node.bases:
        if isinstance(base, ast.Name | ast.Attribute):
            yield base.id if isinstance(base, ast.Name) else base.attr


def _heirs(classes: dict[str, list[ast.ClassDef]], first: set[str]) -> set[str]:
    """``first`` and all classes that inherit from them."""
    known = set(first)
    while new := {
        name
        for name, nodes in classes.items()
        if name not in known and any(known & {*_bases(n)} for n in nodes)
    }:
        known |= new
    return known


def _table(tree: ast.Module, name: str) -> dict[str, Any]:
    """A dictionary of texts and tuples that the module assigns."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(node.value, ast.Dict):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            return {k.value: ast.literal_eval(v) for k, v in pairs if isinstance(k, ast.Constant)}
    return {}


def _vllm(wheel: zipfile.ZipFile) -> dict[str, Any]:
    modules = _modules(wheel, "vllm/model_executor/models/", "vllm/models/")
    classes = _classes(modules)
    able = _heirs(classes, {"SupportsEagle3"})
    registry = next(tree for name, tree in modules if name == "vllm/model_executor/models/registry.py")
    kinds = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS")
    registered = {k: v for kind in kinds for k, v in _table(registry, kind).items()}
    drafters = _table(registry, "_SPECULATIVE_DECODING_MODELS")
    over_pipeline = {name for name, nodes in classes.items() if any(_says(n, "over_pp") for n in nodes)}
    methods = wheel.read("vllm/model_executor/layers/quantization/__init__.py").decode()
    flags = set(re.findall(r'"(--[a-z][a-z0-9-]+)"', wheel.read("vllm/engine/arg_utils.py").decode()))
    flags |= set(
        re.findall(r'"(--[a-z][a-z0-9-]+)"', wheel.read("vllm/entrypoints/common/cli_args.py").decode())
    )
    frontend = _classes(_modules(wheel, "vllm/entrypoints/common/cli_args.py"))
    for name in ("BaseFrontendArgs", "FrontendArgs"):
        flags |= {f"--{field.replace('_', '-')}" for node in frontend[name] for field in _fields(node)}
    return {
        "targets": sorted(arch for arch, (_, name) in registered.items() if name in able),
        "pipelined": sorted(arch for arch, (_, name) in registered.items() if name in able & over_pipeline),
        "drafters": sorted(drafters),
        "quantizations": sorted(
            re.findall(r'"([\w-]+)"', methods.partition("Literal[")[2].partition("]")[0])
        ),
        "flags": sorted(flags),
    }


def _says(node: ast.ClassDef, ending: str) -> bool:
    return any(
        isinstance(line, ast.Assign)
        and isinstance(line.targets[0], ast.Name)
        and line.targets[0].id.endswith(ending)
        and isinstance(line.value, ast.Constant)
        and line.value.value is True
        for line in node.body
    )


def _fields(node: ast.ClassDef) -> list[str]:
    return [n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]


def _sglang(wheel: zipfile.ZipFile) -> dict[str, Any]:
    modules = _modules(wheel, "sglang/srt/models/")
    classes = _classes(modules)
    first = {
        name
        for name, nodes in classes.items()
        for node in nodes
        if any(isinstance(n, ast.FunctionDef) and n.name == "set_dflash_layers_to_capture" for n in node.body)
    }
    able = _heirs(classes, first)
    entries = {name for _, tree in modules for name in _entry_classes(tree)}
    methods = next(m for m in wheel.namelist() if m == "sglang/srt/layers/quantization/__init__.py")
    quantizations = _keys(ast.parse(wheel.read(methods)))
    order = ast.parse(wheel.read("sglang/srt/arg_groups/field_order.py"))
    fields = next(ast.literal_eval(n.value) for n in order.body if isinstance(n, ast.Assign))
    texts = [
        wheel.read(n).decode() for n in wheel.namelist() if n.startswith("sglang/srt/arg_groups/fields/")
    ]
    texts.append(wheel.read("sglang/srt/server_args.py").decode())
    flags = {f"--{field.replace('_', '-')}" for field in fields}
    flags |= {flag for text in texts for flag in re.findall(r'"(--[a-z][a-z0-9-]+)"', text)}
    return {
        "targets": sorted(able & entries),
        "drafters": sorted(name for name in entries if re.match(r"DFlash|DSpark", name)),
        "quantizations": sorted(quantizations),
        "flags": sorted(flags),
    }


def _entry_classes(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EntryClass":
            named = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
            yield from (one.id for one in named if isinstance(one, ast.Name))


def _keys(tree: ast.Module) -> set[str]:
    """The keys of every table of methods in the module."""
    return {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
