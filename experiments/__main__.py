"""`python -m experiments` lists the experiments; `python -m experiments NAME …` is `python -m experiments.NAME …`."""

import ast
import runpy
import sys
from pathlib import Path

from cnnjax.errors import exit_with_error, unknown


def files() -> dict[str, ast.Module]:
    """Every command's name and what its file says, read without running it."""
    paths = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_"))
    return {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def titles() -> dict[str, str]:
    """Every command's name and the first line of its docstring."""
    return {name: (ast.get_docstring(file) or "").partition("\n")[0] for name, file in files().items()}


def trainings(*, claiming: bool = False) -> list[str]:
    """The names of those that the runner runs, or only of those that make a claim."""
    return [
        name
        for name, file in files().items()
        if any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXPERIMENT" for node in file.body)
        and (not claiming or "\nClaim: " in (ast.get_docstring(file) or ""))
    ]


def main() -> None:
    known, name = titles(), next(iter(sys.argv[1:]), "--help")
    if name in ("-h", "--help"):
        width = max(map(len, known))
        print("python -m experiments.NAME runs one of these; --help after it explains its options.\n")
        print("\n".join(f"{name:{width}}  {title}" for name, title in known.items()))
    elif name not in known:
        raise unknown("experiment", name, known)
    else:
        sys.argv[:] = [f"experiments.{name}", *sys.argv[2:]]
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    with exit_with_error():
        main()
