"""A pod without a pod: the real training step, compiled for TPU slices on a machine that has none.

Claim: Whether a training step fits a TPU, what it moves between chips and how far it scales can be known before there
    is a TPU: the compiler says what it refuses, and the rest is arithmetic on its program.
Source: The programs are compiled here by libtpu, the compiler of Cloud TPUs; chips are as in
    cloud.google.com/tpu/docs. Sharded optimiser state: Rajbhandari et al. 2020 (arXiv:1910.02054), section 5.1.
Command: python -m experiments.pod_plan --model resnet50 --topology v5e:16x16 --batch-per-chip 256
Cost: 1 to 4 minutes on 2 CPU cores for each program, about 5 of them for the largest batch; nothing is trained.
Expected: ResNet-50's step with 256 images on each of four v5e takes 8.7 of their 16 GiB, and 22.7 GFLOP an image.
Departures: Nothing was measured on a TPU; every time is an estimate. Images come as uint8 of the size that the network
    sees; they are normalised on the device, and not augmented.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cnnjax import figures, page, runfolder
from cnnjax.analysis import pod
from cnnjax.errors import CnnjaxError, exit_with_error, unknown
from cnnjax.options import Checked

NOTE = "Compiled ahead of time on a machine without a TPU. Nothing was measured on a TPU; every time is an estimate."
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Compiles the training step for TPU slices, and says what it needs there."""

    model: tuple[str, ...] = ("resnet50",)
    """Networks, by catalogue name."""
    topology: tuple[str, ...] = ("v5e:16x16",)
    """Slices: v5e:4x4, v6e:16x16, v5p:2x2x4, v4:4x4x4, …"""
    batch_per_chip: int = 256
    """Images a chip and step."""
    precision: tuple[Literal["bfloat16", "float32"], ...] = ("bfloat16",)
    """Of the forward and backward pass; parameters and updates are float32."""
    optimiser: tuple[Literal["replicated", "sharded"], ...] = ("replicated",)
    """Whether every chip keeps the optimiser's whole state, or its share of it (ZeRO, stage 1)."""
    recipe: str | None = None
    """Whose optimiser, loss and averages; by default the network's own, or else "modern"."""
    search: int = 6
    """Programs that may be compiled to find the largest batch a chip; 0 leaves that out."""
    out: Path = Path("runs/pod_plan")
    """Folder of pod_plan.json, .md and .svg; what is in the .json already is not compiled again."""

    def __post_init__(self):
        self.at_least(batch_per_chip=1, search=0)


# --- compiling --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what libtpu's C++ writes on stderr about hosts that there are not from the user, unless it kills us."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def devices(where: pod.Slice) -> list[Any]:
    """The chips of a slice, to compile for. Raises `CnnjaxError` where there is no compiler, or no such slice."""
    if importlib.util.find_spec("libtpu") is None:
        raise CnnjaxError('the TPU compiler, libtpu, is not installed\npip install "cnnjax[tpu]"')
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compiling takes no TPU from anybody
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    from jax.experimental import topologies

    how: dict[str, Any] = {"chips_per_host_bounds": [min(2, side) for side in where.shape[:2]] + [1]}
    if where.kind == "v4":
        how["chip_config_name"] = "megacore"  # a device is a chip, as it is by default on later ones
    try:
        with quiet():
            found = topologies.get_topology_desc(platform="tpu", topology_name=where.name, **how).devices
    except Exception as error:  # one class for all that the compiler refuses
        raise CnnjaxError(f"libtpu knows no topology {where.name!r}\n{str(error).splitlines()[0][:200]}") from None
    assert len(found) == where.chips, (where, len(found))
    return found


def recipe_of(model: str, name: str | None) -> str:
    """The recipe of that name, or the one whose name the network's begins with."""
    from cnnjax.models.catalog import SHORT
    from cnnjax.train.recipes import RECIPES

    if name is not None and name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    full = SHORT.get(model, model)
    return name or next((known for known in sorted(RECIPES, key=len, reverse=True) if full.startswith(known)), "modern")


def lowered(
    model: str,
    recipe: str,
    where: list[Any],
    *,
    batch: int,
    precision: str,
    optimiser: Literal["replicated", "sharded"],
):
    """The step that training runs, for `batch` images a device, not yet compiled; no array is made."""
    import jax
    import numpy as np

    from cnnjax.data.images import Transform
    from cnnjax.models.catalog import entry
    from cnnjax.train.feed import Prepare
    from cnnjax.train.parallel import data_mesh, one_step, shardings
    from cnnjax.train.recipe import transformation
    from cnnjax.train.recipes import RECIPES
    from cnnjax.train.state import create
    from cnnjax.train.step import Policy

    row, made = RECIPES[recipe], entry(model)
    net, tx = made.make(), transformation(row, 1000)
    mesh = data_mesh(where)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    share = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def placed(leaf: Any, sharding: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = create.eval_shape(net, tx, jax.random.key(0), made.input, average=row.ema_decay is not None)
    places = shardings(mesh, state, optimiser=optimiser)
    images = batch * len(where)
    examples = {
        "image": jax.ShapeDtypeStruct((images, *made.input), np.uint8, sharding=share),
        "label": jax.ShapeDtypeStruct((images,), np.int32, sharding=share),
    }
    key, state = placed(jax.eval_shape(jax.random.key, 0), whole), jax.tree.map(placed, state, places)
    return one_step.trace(
        net, tx, row.loss, key, state, examples, placed=(mesh, optimiser),
        augment=Prepare(Transform(mean=(0.5,), std=(0.5,))), policy=Policy(precision), ema_decay=row.ema_decay or 0.0,
    ).lower(lowering_platforms=("tpu",))  # fmt: skip


def plan(model: str, recipe: str, where: pod.Slice, **how: Any) -> Record:
    """Compiles one program and writes down what it says: {"fits": False, …} where the compiler refuses it.

    how: batch, precision and optimiser, as for `lowered`.
    """
    import jax

    begun = time.perf_counter()
    record = {"model": model, "recipe": recipe, "topology": where.name, "chips": where.chips, **how}
    program = lowered(model, recipe, devices(where), **how)
    try:
        with quiet():
            compiled = program.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = pod.needed(str(error))
        return record | {"fits": False, "memory": used and used[0], "compile_seconds": time.perf_counter() - begun}
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert memory is not None and text is not None and isinstance(cost, dict)
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return record | {
        "fits": True,
        "memory": sum(parts.values()),
        "memory_parts": parts,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "optimal_seconds": cost.get("optimal_seconds"),
        "cycles": pod.cycles(text),
        "collectives": pod.collectives(text, where.chips),
        "compile_seconds": time.perf_counter() - begun,
        "versions": versions(),
    }


def apart(model: str, recipe: str, where: pod.Slice, **how: Any) -> Record:
    """`plan` in a process of its own, for libtpu may take it down: {"fits": None, …} where it does."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=_leave_accelerators_alone) as pool:
        try:
            return pool.submit(plan, model, recipe, where, **how).result()
        except concurrent.futures.BrokenExecutor:
            asked = {"model": model, "recipe": recipe, "topology": where.name, "chips": where.chips, **how}
            return asked | {"fits": None, "memory": None, "versions": versions()}


def _leave_accelerators_alone() -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # shapes are all that is made here: leave GPUs and TPUs alone
    jax.config.update("jax_enable_compilation_cache", False)  # a program that is found again has no analyses


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


# --- what is told -----------------------------------------------------------------------------------------------------


def tables(records: list[Record], found: list[Record]) -> dict[str, page.Table]:
    """By heading: memory and work, collectives, estimated times, estimated scaling."""

    def names(record: Record) -> list[str]:
        return [record["model"], record["topology"], str(record["batch"]), record["precision"], record["optimiser"]]

    def number(value: float | None, form: str = ".1f", unit: float = 1) -> str:
        return "–" if value is None else format(value / unit, form)

    def best(record: Record) -> str:
        for one in found:
            if key(one) == key({**record, "batch": None}):
                return f"{one['fits'] or 'none'}{'' if one['refused'] else ' or more'}"
        return "–"

    heads = ["network", "topology", "batch a chip", "precision", "optimiser state"]
    work, passed, times, scaled = [], [], [], []
    for record in records:
        chip = pod.slice_named(record["topology"]).chip
        atleast = "" if record["fits"] or record["memory"] is None else "≥ "
        memory = [atleast + number(record["memory"], ".2f", pod.GIB), f"{chip.memory / pod.GIB:g}"]
        if not record["fits"]:
            no = "compiler crashed" if record["fits"] is None else "no"
            work.append([*names(record), *memory, no, best(record), "–", "–", "–"])
            continue
        state = record["memory_parts"]["arguments"]
        work.append([
            *names(record), *memory, "yes", best(record), number(state, ",.0f", 2**20),
            number(record["flops"], ",.0f", 1e9), number(record["bytes"], ",.1f", 1e9),
        ])  # fmt: skip
        cells = []
        for kind in ("all-reduce", "reduce-scatter", "all-gather"):
            count, size = record["collectives"].get(kind, (0, 0))
            cells += [str(count), number(size, ",.1f", 1e6)]
        passed.append([*names(record), *cells])
        said = pod.estimates(record)
        times.append([
            *names(record), number(said["optimal_seconds"], ",.1f", 1e-3), number(said["cycles_seconds"], ",.1f", 1e-3),
            number(said["communication_seconds"], ",.2f", 1e-3), number(said["images_per_second"], ",.0f"),
        ])  # fmt: skip
        if said["scaling"]:
            shares = {row["chips"]: row["efficiency"] for row in said["scaling"]}
            scaled.append([*names(record), *(f"{100 * shares[n]:.1f}" for n in SCALES)])
    return {
        "Memory and work of a chip and step": page.Table(
            [*heads, "needs, GiB", "has, GiB", "fits", "largest batch", "state and batch, MiB", "GFLOP", "GB moved"],
            work,
        ),
        "Collectives of a step": page.Table(
            [*heads, "all-reduces", "their MB", "reduce-scatters", "their MB", "all-gathers", "their MB"], passed
        ),
        "Times of a step (estimates)": page.Table(
            [*heads, "optimal, ms", "by cycles, ms", "collectives, ms", "images/s"], times
        ),
        "Images/s a chip, in % of a chip alone (estimates)": page.Table(
            [*heads, *(f"{n} chips" for n in SCALES)], scaled
        ),
    }  # fmt: skip


SCALES = (1, 4, 16, 64, 256)

LEGEND = (
    "needs: what the program reserves in a chip's memory, or where it does not fit what the compiler says of that. "
    "largest batch: the largest that the compiler was seen to take, of those tried by doubling and bisecting. "
    "optimal: the compiler's figure for the whole step; by cycles: its estimates of the operations added up, over the "
    "clock; – where it gives none, or one that cannot be true (negative, or below what the chip's peak allows). "
    "collectives: their bytes over the links of the slice at their peak, and a microsecond for every hop; images/s and "
    "scaling add that to the cycles, as if nothing were hidden. It can rise again where an axis is long enough for its "
    "ends to be joined (16 chips on v5e and v6e, 4 on v4 and v5p). BatchNorm is synchronised, which makes most of the "
    "all-reduces. Images are normalised on the device and not augmented."
)


def picture(records: list[Record]) -> str:
    """Memory against what a chip has, and estimated scaling: SVG, or "" where no program fits."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = [record for record in records if record["fits"]]
    if not shown:
        return ""
    models = list(dict.fromkeys(record["model"] for record in shown))
    marks = dict(zip(models, "osD^vPX*" * (1 + len(models) // 8), strict=False))
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10, 1.6 + max(2.4, 0.24 * len(shown))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        labels = []
        for line, record in enumerate(reversed(shown)):
            chip = pod.slice_named(record["topology"]).chip
            parts, begun = record["memory_parts"], 0.0
            for name, colour in (("arguments", "#444444"), ("temporaries", "#999999"), ("program", "#cccccc")):
                share = 100 * parts[name] / chip.memory
                left.barh(line, share, left=begun, color=colour, label=None if line else MEMORY[name])
                begun += share
            state = "" if record["optimiser"] == "replicated" else ", sharded"
            fp = "" if record["precision"] == "bfloat16" else ", float32"
            labels.append(f"{record['model']}, {record['topology']}, {record['batch']}{fp}{state}")
        left.set_yticks(range(len(labels)), labels)
        left.set(xlabel="memory of a chip, % of what it has", xlim=(0, 100), ylim=(-0.6, len(labels) - 0.4))
        left.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3, frameon=False)
        drawn = set()
        for record in shown:
            where, rows = pod.slice_named(record["topology"]), pod.estimates(record)["scaling"]
            if rows and (record["model"], where.kind) not in drawn and record["optimiser"] == "replicated":
                drawn.add((record["model"], where.kind))
                colour = figures.COLOURS[list(pod.CHIPS).index(where.kind) % len(figures.COLOURS)]
                points = [row["chips"] for row in rows], [100 * row["efficiency"] for row in rows]
                right.plot(*points, color=colour, marker=marks[record["model"]], ms=4,
                           label=f"{record['model']}, {where.kind}")  # fmt: skip
        right.set_xscale("log", base=2)
        right.set_xticks(SCALES, list(map(str, SCALES)))
        lowest = min((value for line in right.lines for value in line.get_ydata()), default=100)
        right.set(xlabel="chips", ylabel="estimated images/s a chip, % of one alone")
        right.set_ylim(min(80, 10 * (lowest // 10)), 101)
        right.legend(frameon=False, fontsize=8)
        return figures.svg(figure)


MEMORY = {"arguments": "state and batch", "temporaries": "activations", "program": "program"}


def markdown(records: list[Record], found: list[Record]) -> str:
    parts = ["# A pod without a pod", f"**{NOTE}**", "![memory and estimated scaling](pod_plan.svg)"]
    for heading, table in tables(records, found).items():
        parts += [f"## {heading}", page.markdown_table(table)]
    versions = sorted({f"jax {r['versions']['jax']}, libtpu {r['versions']['libtpu']}" for r in records if r["fits"]})
    made = f"Written by `python -m experiments.pod_plan` from `pod_plan.json` ({'; '.join(versions)})."
    return "\n\n".join([*parts, LEGEND, made]) + "\n"


def key(record: Record) -> tuple:
    return tuple(record[name] for name in ("model", "recipe", "topology", "batch", "precision", "optimiser"))


def main(options: Options) -> None:
    from rich.console import Console

    from cnnjax.models.catalog import entry

    _leave_accelerators_alone()
    wanted = [
        {"model": model, "recipe": recipe_of(model, options.recipe), "topology": topology,
         "batch": options.batch_per_chip, "precision": precision, "optimiser": optimiser}
        for model in options.model for topology in options.topology
        for precision in options.precision for optimiser in options.optimiser
    ]  # fmt: skip
    for ask in wanted:  # what is mistyped stops here
        entry(ask["model"])
        pod.slice_named(ask["topology"])
    devices(pod.slice_named(wanted[0]["topology"]))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "pod_plan.json"
    kept = runfolder.read_json(path) if path.exists() else {"note": NOTE, "programs": [], "largest": []}
    console = Console(width=200)

    def planned(ask: Record) -> Record:
        for record in kept["programs"]:
            if key(record) == key(ask) and (record["fits"] is not None or record["versions"] == versions()):
                return record
        with console.status(" ".join(map(str, key(ask)))):
            how = {name: ask[name] for name in ("batch", "precision", "optimiser")}
            record = apart(ask["model"], ask["recipe"], pod.slice_named(ask["topology"]), **how)
        if record["fits"]:
            record["estimates"] = pod.estimates(record)
        kept["programs"] = [one for one in kept["programs"] if key(one) != key(record)] + [record]
        runfolder.write_json(path, kept)
        return record

    for ask in wanted:
        can = planned(ask)["fits"] is not None
        if can and options.search and all(key(one) != key({**ask, "batch": None}) for one in kept["largest"]):
            fits, refused = pod.largest(
                lambda batch, ask=ask: planned({**ask, "batch": batch})["fits"], ask["batch"], options.search
            )
            kept["largest"].append({**ask, "batch": None, "fits": fits, "refused": refused})
            runfolder.write_json(path, kept)
    asked = {key(ask) for ask in wanted}
    kept["programs"].sort(key=lambda one: (one["model"], one["topology"].partition(":")[0], one["chips"], *key(one)))
    svg = picture(kept["programs"])
    if svg:
        (options.out / "pod_plan.svg").write_text(svg, encoding="utf-8")
    (options.out / "pod_plan.md").write_text(markdown(kept["programs"], kept["largest"]), encoding="utf-8")
    for heading, table in tables([r for r in kept["programs"] if key(r) in asked], kept["largest"]).items():
        console.print(page.grid(table, heading))
        console.print()
    print(f"{NOTE}\n{options.out / 'pod_plan.md'}")


if __name__ == "__main__":
    import tyro

    with exit_with_error():
        main(tyro.cli(Options, description=__doc__))
