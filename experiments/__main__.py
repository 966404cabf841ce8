"""`python -m experiments` lists the experiments; `python -m experiments NAME …` is `python -m experiments.NAME …`."""

import ast
import runpy
import sys
from pathlib import Path

from cnnjax.errors import exit_with_error, unknown


def titles() -> dict[str, str]:
    """Every experiment's name and the first line of its docstring, read without running it."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_"))
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


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
