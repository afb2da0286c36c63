"""The rules of CONTRIBUTING.md that a machine can check. Each check yields one line a fault, with its mend.

The floors and the tree are read from docs/architecture.md, so that what is drawn there is what is checked.
"""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from packaging.requirements import Requirement

PACKAGE = "flashdraft"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "misc", "common"}

# docs/glossary.md, column "not": only what has no other meaning in this code, and only where a name is born.
BANNED_WORDS = {"verifier", "speculator", "proposer", "posterior", "eal"}
BANNED_NAMES = {"p_probs", "q_probs", "target_hidden", "aux_hidden_states", "verified_id", "block_table"}

CLOCKS = r"\b(perf_counter|monotonic|(process|thread)_time|(?<=time\.)time)(_ns)?$"

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file, parsed."""

    path: str  # relative to the repository, with slashes
    module: str  # dotted; only meaningful below src/
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.endswith("/__init__.py")

    @property
    def in_package(self) -> bool:
        return self.path.startswith("src/")


Sources = dict[str, Source]
Check = Callable[[Sources, str], Iterator[str]]


def read_sources(root: Path) -> Sources:
    """Every Python file of the package, its tests, recipes and benchmarks, by path."""
    sources = {}
    for folder in ("src", "tests", "recipes", "benchmarks"):
        for file in sorted((root / folder).rglob("*.py")):
            path, text = file.relative_to(root).as_posix(), file.read_text()
            module = path.removeprefix("src/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            sources[path] = Source(path, module, text, ast.parse(text))
    return sources


def imports(source: Source, modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of every import of the package in ``source``, wherever in the file it stands."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = source.module.split(".") if source.is_package else source.module.split(".")[:-1]
            outer = here[: len(here) + 1 - node.level] if node.level else []
            base = ".".join([*outer, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules or base == PACKAGE else base for name in names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == PACKAGE)


def package_imports(sources: Sources) -> Iterator[tuple[Source, int, str]]:
    """(source, line, imported name) within the package; its root, which is lazy, stands outside."""
    modules = {source.module for source in sources.values() if source.in_package}
    for source in sources.values():
        if source.in_package and source.module != PACKAGE:
            yield from ((source, line, name) for line, name in dict.fromkeys(imports(source, modules)))


def functions(source: Source) -> Iterator[FunctionNode]:
    return (node for node in ast.walk(source.tree) if isinstance(node, FunctionNode))


def section(document: str, title: str) -> str:
    """The text below the heading ``## title``."""
    return document.partition(f"## {title}\n")[2].partition("\n## ")[0]


def documented_floors(architecture: str) -> dict[str, int]:
    """Unit (subpackage or top-level module) -> floor, from the table of section "Floors"."""
    rows = re.findall(r"^\| *(\d+) *\|([^|]*)\|", section(architecture, "Floors"), re.MULTILINE)
    return {unit: int(floor) for floor, units in rows for unit in re.findall(r"`(\w+)`", units)}


def documented_files(architecture: str) -> set[str]:
    """The paths of all .py files drawn in section "The tree"; two more spaces mean one folder deeper."""
    files: set[str] = set()
    folders: list[str] = []
    for indent, name in re.findall(r"^( *)([\w./]+)", section(architecture, "The tree"), re.MULTILINE):
        del folders[len(indent) // 2 :]
        if name.endswith("/"):
            folders.append(name)
        elif name.endswith(".py"):
            files.add("".join(folders) + name)
    return files


def arrows_point_down(sources: Sources, architecture: str) -> Iterator[str]:
    floors = documented_floors(architecture)
    for source, line, name in package_imports(sources):
        unit, other = source.module.split(".")[1], name.split(".")[1] if "." in name else ""
        if unit == other or other == "__version__":
            continue
        where = f"{source.path}:{line} imports {name}"
        if unit not in floors:
            yield f"{source.path}: {unit!r} stands on no floor; add it to docs/architecture.md, Floors"
        elif other not in floors:
            yield f"{where}: {other!r} stands on no floor; a name is imported from its home module"
        elif floors[other] >= floors[unit]:
            yield f"{where}, but {unit!r} stands on floor {floors[unit]} and {other!r} on {floors[other]}"


def no_import_circles(sources: Sources, _: str) -> Iterator[str]:
    graph: dict[str, set[str]] = {}
    for source, _line, name in package_imports(sources):
        graph.setdefault(source.module, set()).add(name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield "import circle: " + " <- ".join(error.args[1])


def files_are_short(sources: Sources, _: str) -> Iterator[str]:
    for source in sources.values():
        num_lines = len(source.text.splitlines())
        if num_lines > MAX_FILE_LINES:
            yield f"{source.path} has {num_lines} lines, at most {MAX_FILE_LINES}: split it by concept"


def functions_are_short(sources: Sources, _: str) -> Iterator[str]:
    for source in sources.values():
        for node in functions(source):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if num_lines > MAX_FUNCTION_LINES:
                where = f"{source.path}:{node.lineno} {node.name}"
                yield f"{where} has {num_lines} lines, at most {MAX_FUNCTION_LINES}"


def reexports_are_declared(sources: Sources, _: str) -> Iterator[str]:
    modules = {source.module for source in sources.values() if source.in_package}
    for source in sources.values():
        if not (source.in_package and source.is_package and any(imports(source, modules))):
            continue
        imported = {
            alias.asname or alias.name
            for node in ast.walk(source.tree)
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith(PACKAGE))
            for alias in node.names
        }
        assigned = {
            node.targets[0].id: node.value
            for node in source.tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        if "__all__" not in assigned:
            yield f"{source.path} re-exports without __all__"
            continue
        declared = set(ast.literal_eval(assigned["__all__"]))
        if missing := imported - declared:
            yield f"{source.path}: __all__ lacks {sorted(missing)}"
        if unknown := declared - imported - set(assigned):
            yield f"{source.path}: __all__ names {sorted(unknown)}, which the file does not have"


def clients_are_patient(sources: Sources, _: str) -> Iterator[str]:
    for source in sources.values():
        if source.path.startswith("tests/") and source.path != "tests/patient.py":
            for match in re.finditer(r"\bhttpx2\.(get|options|post|request|stream)\(", source.text):
                yield f"{source.path}: {match[0]}...) gives up after 5 seconds; patient.{match[1]} does not"


def clocks_are_not_asserted(sources: Sources, _: str) -> Iterator[str]:
    for source in sources.values():
        asserts = [node for node in ast.walk(source.tree) if isinstance(node, ast.Assert)]
        for call in (node for one in asserts for node in ast.walk(one.test) if isinstance(node, ast.Call)):
            if source.path.startswith("tests/") and (clock := re.search(CLOCKS, ast.unparse(call.func))):
                where = f"{source.path}:{call.lineno} asserts what {clock[0]}() says"
                yield f"{where}, which a busy machine changes: set the clock, or wait with wait_until"


def folders_are_packages(sources: Sources, _: str) -> Iterator[str]:
    for path, source in sources.items():
        marker = path.rpartition("/")[0] + "/__init__.py"
        if source.in_package and marker not in sources:
            yield f"{path} is left out of an installed package: {marker} is missing"


def names_say_something(sources: Sources, _: str) -> Iterator[str]:
    for source in sources.values():
        if empty := NAMES_THAT_SAY_NOTHING & set(source.path.removesuffix(".py").split("/")):
            yield f"{source.path}: {empty.pop()!r} says nothing; name the one concept that the file holds"


def public_things_are_explained(sources: Sources, _: str) -> Iterator[str]:
    for source in sources.values():
        if not source.in_package:
            continue
        if not ast.get_docstring(source.tree):
            yield f"{source.path}: the module has no docstring"
        nodes = [(node, "") for node in source.tree.body]
        while nodes:
            node, owner = nodes.pop()
            if not isinstance(node, FunctionNode | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield f"{source.path}:{node.lineno} {owner}{node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                nodes += [(child, f"{node.name}.") for child in node.body]


def born_names(source: Source) -> Iterator[tuple[int, str]]:
    """Names that the file itself chooses: definitions, parameters and assigned variables and attributes."""
    for node in ast.walk(source.tree):
        if isinstance(node, FunctionNode | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def glossary_words_are_used(sources: Sources, _: str) -> Iterator[str]:
    for source in sources.values():
        if not source.in_package:
            continue
        for line, name in [(1, Path(source.path).stem), *born_names(source)]:
            words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
            if name in BANNED_NAMES or words & BANNED_WORDS:
                yield f"{source.path}:{line} {name!r}: docs/glossary.md has another word for it"


def the_tree_is_drawn(sources: Sources, architecture: str) -> Iterator[str]:
    there = {path for path, source in sources.items() if source.in_package and not source.is_package}
    drawn = documented_files(architecture)
    yield from (f"{path} is not drawn in docs/architecture.md, The tree" for path in sorted(there - drawn))
    yield from (
        f"docs/architecture.md, The tree, draws {path}, which is gone" for path in sorted(drawn - there)
    )


def lock_faults(pyproject: str, lock: str) -> Iterator[str]:
    """What requirements.lock does not pin, pins outside the bounds of pyproject.toml, or may not pin."""
    project = tomllib.loads(pyproject)["project"]
    lines = [line for line in lock.splitlines() if line and not line.startswith("#")]
    pins = {
        name.lower().replace("_", "-"): version
        for name, _, version in (line.partition("==") for line in lines)
    }
    for wanted in map(Requirement, project["dependencies"] + project["optional-dependencies"]["dev"]):
        pin = pins.get(wanted.name.lower().replace("_", "-"))
        if pin is None or not wanted.specifier.contains(pin):
            yield f"pyproject.toml asks for {wanted}, requirements.lock pins {pin}"
    for name, version in pins.items():
        if name.startswith(("nvidia", "triton")) or not version or "+" in version:
            yield f"{name}=={version}: pin by version, and leave to the torch build what it needs"


CHECKS: list[Check] = [
    arrows_point_down,
    no_import_circles,
    files_are_short,
    functions_are_short,
    reexports_are_declared,
    clients_are_patient,
    clocks_are_not_asserted,
    folders_are_packages,
    names_say_something,
    public_things_are_explained,
    glossary_words_are_used,
    the_tree_is_drawn,
]
