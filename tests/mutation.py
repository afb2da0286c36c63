"""Mutants of the core rules (mutmut, see pyproject.toml): each is killed by a test or listed in mutation.md.

`make mutate` runs it. Fails for a survivor that is not listed, and for less than 95 % killed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

MUTMUT = [sys.executable, "-m", "mutmut"]
LISTED = Path(__file__).with_suffix(".md")
WANTED = 0.95


def said(*argv: str) -> str:
    return subprocess.run([*MUTMUT, *argv], capture_output=True, text=True, check=True).stdout


def changed(mutant: str) -> tuple[str, str, str]:
    """A mutant's function, and its line before and after."""
    diff = said("show", mutant)
    before, after = (re.findall(rf"^[{sign}](?![{sign}])(.*)$", diff, re.MULTILINE) for sign in "-+")
    return re.sub(r"xǁ(\w+)ǁ", r"\1.", mutant.partition("__mutmut")[0]), before[0].strip(), after[0].strip()


def main() -> int:
    """Run all mutants and compare the survivors with the list."""
    log = Path("mutants.log")
    with log.open("w") as file:
        subprocess.run([*MUTMUT, "run"], stdout=file, stderr=subprocess.STDOUT, check=True)
    log.unlink()
    said("export-cicd-stats")
    counts = json.loads(Path("mutants/mutmut-cicd-stats.json").read_text())
    killed = counts["killed"] + counts["timeout"]
    survivor = re.compile(r"^\s*(\S+__mutmut_\d+): (?:survived|no tests)", re.MULTILINE)
    rows = [changed(mutant) for mutant in survivor.findall(said("results"))]
    known = LISTED.read_text()
    unknown = [row for row in rows if f"| `{row[1]}` | `{row[2]}` |" not in known]
    print(f"{killed} of {counts['total']} mutants are killed, {len(rows)} survive")
    for name, before, after in unknown:
        print(f"not in {LISTED.name}: {name}\n  - {before}\n  + {after}")
    return int(bool(unknown) or killed < WANTED * counts["total"])


if __name__ == "__main__":
    sys.exit(main())
