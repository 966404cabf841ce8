"""The rooms: imports run one way, and what is heavy is imported where it is used."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What a room may know, apart from itself, `cnnjax.errors`, `cnnjax.download` and libraries.
MAY_KNOW = {
    "models": set(),
    "analysis": {"models"},
    "data": set(),
    "train": {"models.chain", "data", "machine"},
    "weights": {"models", "data.images"},
    "transfer": {"models", "data", "train", "weights", "analysis"},
    "visualize": {"models", "data", "train", "weights", "analysis"},
    "style": {"models", "data", "train", "weights", "analysis"},
}
HEAVY = ("orbax", "grain", "tensorflow_datasets", "sklearn", "matplotlib", "mlxtend", "scipy", "tensorflow")


def imported(path: Path) -> set[str]:
    """The modules of this project that a file imports, without their `cnnjax.`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("cnnjax.") for name in names if name.split(".")[0] in ("cnnjax", "experiments")}


@pytest.mark.parametrize("path", sorted((ROOT / "cnnjax").glob("*/*.py")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_room_knows_only_the_rooms_below_it(path):
    room = path.parent.name
    allowed = {room, "errors", "download"} | MAY_KNOW[room]
    for name in imported(path):
        assert any(f"{name}.".startswith(f"{known}.") for known in allowed), f"{room} must not import {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "cnnjax").rglob("*.py")), ids=lambda p: p.name)
def test_nobody_knows_the_experiments(path):
    assert not {name for name in imported(path) if name.split(".")[0] == "experiments"}


def test_only_ops_calls_the_convolution_and_pooling_primitives():
    for path in sorted((ROOT / "cnnjax").rglob("*.py")):
        text = path.read_text()
        called = [
            name for name in ("conv_general_dilated(", "reduce_window(", "nn.Conv(", "nn.max_pool") if name in text
        ]
        assert not called or path.parent.name == "ops", f"{path.name} calls {called}"


def test_no_room_is_called_utils_and_none_is_empty():
    for path in (ROOT / "cnnjax").rglob("*.py"):
        assert path.stem not in ("utils", "common", "misc", "helpers")
        assert path.name != "__init__.py" or len(list(path.parent.glob("*.py"))) > 1


def modules_after(statement: str) -> list[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.split()


@pytest.mark.parametrize("module", [
    "cnnjax.models.catalog", "cnnjax.analysis.summary", "cnnjax.data.sources", "cnnjax.data.pipeline",
    "cnnjax.train.loop", "cnnjax.experiment", "cnnjax.report",
])  # fmt: skip
def test_heavy_libraries_are_imported_where_they_are_used(module):
    loaded = {name.split(".")[0] for name in modules_after(f"import {module}")}
    assert not loaded & set(HEAVY)


@pytest.mark.long
def test_importing_the_models_costs_little_more_than_flax():
    def seconds(statement):
        code = f"import flax.linen, time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    time.sleep(1)
    assert min(seconds("import cnnjax.models.catalog") for _ in range(5)) <= 0.3
