"""Speed beside the peers: seven networks, inference and training steps, against four libraries in one run.

Claim: On a CPU the networks here are about twice as fast as the same networks written with Flax's own layers, and about
    as fast as PyTorch, which has hand-written kernels.
Source: No paper. The peers are Flax (`nn.Conv`, `nn.BatchNorm`), Keras 3 on JAX, and PyTorch eager, channels-last and
    through `torch.compile`, each written with its own layers from the same table and given the same weights; that
    parameters, logits and, without dropout, losses are equal is asserted before anything is timed.
Command: python -m experiments.benchmark
Cost: An hour on 2 CPU cores, most of it compiling. Eight copies of VGG-16 in training want more than 24 GB; where
    memory is short, peers are left out.
Expected: The ratios in docs/performance.md. Ratios carry over to other machines better than seconds do.
Departures: Ours is timed as it is meant to be used: at inference with batch normalisation folded into the convolutions.
    No peer folds by itself. Every peer has a process of its own, all with the same settings of the memory allocator,
    and only one of them works at a time.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import math
import multiprocessing
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from cnnjax import figures, machine, page, runfolder
from cnnjax.errors import CnnjaxError, exit_with_error, unknown
from cnnjax.options import Checked

NETWORKS = {  # catalogue name: size of the batch
    "lenet5": 128, "alexnet": 16, "googlenet_v1": 4, "vgg16": 2, "resnet50": 8, "inception_v3": 2, "densenet121": 4,
}  # fmt: skip

PEERS = {  # name: module, which of the library's own ways
    "ours": ("in_jax", ""),
    "control": ("in_jax", ""),  # ours once more: what differs from ours is noise
    "reference": ("in_jax", "reference"),
    "flax": ("in_jax", "flax"),
    "keras": ("in_keras", ""),
    "torch": ("in_torch", ""),
    "torch-channels-last": ("in_torch", "channels_last"),
    "torch-compile": ("in_torch", "compile"),
}
OURS = ("ours", "control", "reference")

# glibc gives big blocks back to the system after every step and takes them again: a quarter of the time goes into page
# faults. One arena that keeps what it has cures it, in every library alike.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # of the largest logit
SPARE = 1.3  # times the memory of the largest peer so far must be free for another
NOISE = 0.05  # a control farther than this from ours says that the machine is not quiet


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Speed beside the peers, in one run."""

    workdir: Path = Path("runs/benchmark")
    """Folder of the report."""
    only: tuple[str, ...] = ()
    """Networks to race, by catalogue name; seven by default."""
    modes: tuple[Literal["infer", "train"], ...] = ("infer", "train")
    """Inference, training steps, or both."""
    peers: tuple[str, ...] = ()
    """Who races beside ours; by default all that are installed."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall: seconds on all cores, for an idle machine. cpu: processor time on one core, for a crowded one."""
    rounds: int = 7
    """Each peer has one slice a round, in turn."""
    seconds: float = 0.5
    """Length of a slice, in seconds; one call at least."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward and backward pass."""
    batch: int | None = None
    """Size of the batch; each network's own by default."""
    narrow: int = 1
    """Divides every network's numbers of maps, to try the command out."""
    fresh: bool = False
    """Start over; the folder that is there is kept under another name."""

    def __post_init__(self):
        self.at_least(rounds=1, batch=1, narrow=1)
        self.positive("seconds")


# --- one peer in its process ------------------------------------------------------------------------------------------


def _work(pipe: Connection, peer: str, path: Path, cpu_clock: bool) -> None:
    """Builds the peer, says what it computes; then does as many calls as it is told, and says how long they took."""
    if cpu_clock and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    try:
        if peer == "peak":
            from experiments.peers.in_jax import matrix_product

            repeat, operations = matrix_product()
            pipe.send({"operations": operations})
        else:
            module, variant = PEERS[peer]
            task = pickle.loads(path.read_bytes())._replace(variant=variant)
            running = importlib.import_module(f"experiments.peers.{module}").build(task)
            repeat = running.repeat
            pipe.send({**running._asdict(), "repeat": None})
        while calls := pipe.recv():
            wall, cpu = time.perf_counter(), time.process_time()
            repeat(calls)
            pipe.send({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})
        pipe.send(_memory_mb(peer))
    except Exception as error:  # whatever it is, the race is told
        what = str(error).partition("\n")[0]
        pipe.send(CnnjaxError(f"{peer} fails: {type(error).__name__}: {what[:300]}"))


def _memory_mb(peer: str) -> int:
    """The most memory that this process has had, in MB: the accelerator's, where one is used."""
    if not peer.startswith("torch"):
        return machine.peak_memory_mb()
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e6) if torch.cuda.is_available() else machine.host_memory_mb()


# --- the race ---------------------------------------------------------------------------------------------------------


class Racer:
    """A peer's process, seen from outside. Raises `CnnjaxError` with what went wrong in it."""

    def __init__(self, peer: str, path: Path, cpu_clock: bool):
        context = multiprocessing.get_context("spawn")
        self.peer = peer
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, peer, path, cpu_clock), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.said = self.hear()
        except BaseException:
            self.process.kill()
            raise
        self.calls, self.times = 1, []

    def hear(self) -> Any:
        try:
            said = self.pipe.recv()
        except EOFError:
            raise CnnjaxError(f"the process of {self.peer} died; was there memory for it?") from None
        if isinstance(said, CnnjaxError):
            raise said
        return said

    def race(self, clock: str) -> float:
        """Seconds a call, over one slice."""
        self.pipe.send(self.calls)
        return self.hear()[clock] / self.calls


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Variables for the processes that are started inside."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def race(task: Any, peers: tuple[str, ...], options: Options) -> dict[str, dict[str, Any]]:
    """Every peer's slices, in turn, round after round: by peer what it said of itself, seconds a call, and memory.

    A peer for which there is no memory is left out, the copies of ours first. Raises `CnnjaxError` where two do not
    compute the same.
    """
    settings = {**ALLOCATOR, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    settings |= {"OMP_NUM_THREADS": "1"} if options.clock == "cpu" else {}
    racers: list[Racer] = []
    with tempfile.TemporaryDirectory() as folder, _environment(settings):
        path = Path(folder) / "task"
        path.write_bytes(pickle.dumps(task))
        try:
            largest = 0.0
            for peer in sorted(peers, key=OURS[1:].__contains__):  # one after the other: each compiles alone
                if (free := machine.free_memory_mb()) > SPARE * largest:
                    racers.append(Racer(peer, path, options.clock == "cpu"))
                    largest = max(largest, free - machine.free_memory_mb())
            _agree({racer.peer: racer.said for racer in racers}, task)
            racers.sort(key=lambda racer: peers.index(racer.peer))
            racers.append(Racer("peak", path, options.clock == "cpu"))
            for racer in racers:
                racer.race(options.clock)
                racer.calls = max(1, round(options.seconds / racer.race(options.clock)))
            for _ in range(options.rounds):
                for racer in racers:
                    racer.times.append(racer.race(options.clock))
            for racer in racers:
                racer.pipe.send(0)
            return {racer.peer: {**racer.said, "times": racer.times, "memory_mb": racer.hear()} for racer in racers}
        finally:
            for racer in racers:
                racer.process.kill()
                racer.process.join()


def _agree(said: dict[str, Any], task: Any) -> None:
    """Raises `CnnjaxError` unless all have as many parameters, and give the same logits and losses."""
    import numpy as np

    from cnnjax.models.surgery import map_modules

    rates = []
    map_modules(task.net, lambda m: (rates.append(getattr(m, "dropout", 0) or getattr(m, "rate", 0)), m)[1])
    first, *others = said
    mine, near = said[first], TOLERANCE[task.dtype]
    for other in others:
        theirs, who = said[other], f"{first} and {other}"
        if theirs["parameters"] != mine["parameters"]:
            raise CnnjaxError(f"{who} have {mine['parameters']:,} and {theirs['parameters']:,} parameters")
        off = np.abs(theirs["logits"] - mine["logits"]).max() / np.abs(mine["logits"]).max()
        if not off < near:
            raise CnnjaxError(f"{who} do not give the same logits: they differ by {off:.1e} of the largest")
        if not any(rates) and not np.allclose(theirs["losses"], mine["losses"], rtol=near):
            raise CnnjaxError(f"the first losses of {who} are {mine['losses']} and {theirs['losses']}")


def make_task(name: str, mode: str, options: Options) -> tuple[Any, int]:
    """What the peers do for a network and a mode, and the multiply-adds of one image."""
    import jax
    import numpy as np
    import optax

    from cnnjax.analysis.summary import summarise
    from cnnjax.models.catalog import entry
    from cnnjax.models.surgery import with_head, with_init, with_width
    from cnnjax.train.state import create
    from experiments.peers import Task

    made, batch, rng = entry(name), options.batch or NETWORKS[name], np.random.default_rng(0)
    # He's initial weights: the signal neither dies nor explodes, whatever the paper's own would do in a few steps.
    net = with_init(made.make(), "he")
    if options.narrow > 1:
        net = with_head(with_width(net, 1 / options.narrow), 10)
    state = jax.device_get(create(net, optax.sgd(0.1), jax.random.key(0), made.input, frozen=frozenset()))
    images = rng.normal(size=(batch, *made.input)).astype(np.float32)
    labels = (np.arange(batch) % 10).astype(np.int32)
    weights = {"params": state.params, "batch_stats": state.stats}
    return Task(net, weights, images, labels, mode == "train", options.dtype), summarise(net, made.input).macs


def measure(name: str, mode: str, peers: tuple[str, ...], options: Options) -> dict[str, Any]:
    """One row of the results: a network, a mode, and what each peer took for it."""
    task, macs = make_task(name, mode, options)
    said, batch = race(task, peers, options), len(task.images)
    peak = said.pop("peak")
    operations = 2 * macs * batch * (3 if mode == "train" else 1)
    rivals = [peer for peer in said if peer not in OURS] or ["ours"]
    fastest = min(statistics.median(said[peer]["times"]) for peer in rivals)
    return {
        "network": name, "mode": mode, "batch": batch,
        "peak_gflops": peak["operations"] / min(peak["times"]) / 1e9,
        "peers": {
            peer: {
                "median": (median := statistics.median(one["times"])), "minimum": min(one["times"]),
                "images_per_second": batch / median, "ratio": fastest / median,
                "of_peak": operations / median / (peak["operations"] / min(peak["times"])),
                **{field: one[field] for field in ("times", "cold", "warm", "memory_mb")},
            }
            for peer, one in said.items()
        },
    }  # fmt: skip


# --- the report -------------------------------------------------------------------------------------------------------


def table(row: dict[str, Any]) -> page.Table:
    """One network and mode, a line a peer."""
    headings = ["peer", "median, ms", "minimum, ms", "images/s", "ratio to fastest", "of peak, %", "compile cold, s",
                "warm, s", "memory, MB"]  # fmt: skip

    def line(peer: str, one: dict[str, Any]) -> list[str]:
        compiling = ["–" if one[kind] is None else f"{one[kind]:.1f}" for kind in ("cold", "warm")]
        return [
            peer, f"{1000 * one['median']:.2f}", f"{1000 * one['minimum']:.2f}", f"{one['images_per_second']:,.1f}",
            f"{one['ratio']:.2f}", f"{100 * one['of_peak']:.0f}", *compiling, f"{one['memory_mb']:,}",
        ]  # fmt: skip

    return page.Table(headings, [line(peer, one) for peer, one in row["peers"].items()])


def overview(rows: list[dict[str, Any]]) -> page.Table:
    """Ours beside each peer: how many times as fast, by medians; the last line is the geometric mean."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row["peers"] if peer != "ours"))

    def times(row: dict[str, Any], peer: str) -> float:
        """How many times as long the peer took; nan where it was left out."""
        return row["peers"].get(peer, {"median": math.nan})["median"] / row["peers"]["ours"]["median"]

    def mean(values: Iterable[float]) -> float:
        return math.exp(statistics.fmean(math.log(value) for value in values if not math.isnan(value)))

    lines = [
        [f"{row['network']}, {row['mode']}, {row['batch']}", f"{row['peers']['ours']['ratio']:.2f}"]
        + [f"{times(row, peer):.2f}".replace("nan", "–") for peer in peers]
        for row in rows
    ]
    means = [mean(row["peers"]["ours"]["ratio"] for row in rows)]
    means += [mean(times(row, peer) for row in rows) for peer in peers]
    headings = ["network, mode, batch", "to the fastest peer", *(f"to {peer}" for peer in peers)]
    return page.Table(headings, [*lines, ["geometric mean", *(f"{each:.2f}" for each in means)]])


def write(folder: Path, record: dict[str, Any], rows: list[dict[str, Any]], absent: list[str]) -> None:
    """`report.html`, `report.md` and `results.json`."""
    about = page.about(__doc__ or "")
    noisy = [f"{row['network']} {row['mode']}" for row in rows if abs(_control(row) - 1) > NOISE]
    notes = [
        f"{'Processor time on one core' if record['clock'] == 'cpu' else 'Seconds, all cores'}; {record['dtype']}."
    ]
    if noisy:
        notes.append(f"The control is more than {NOISE:.0%} off ours in {', '.join(noisy)}: read those with care.")
    if absent:
        notes.append(f"Not installed, and so not raced: {', '.join(absent)}.")
    for row in rows:
        if left_out := [peer for peer in record["peers"] if peer not in row["peers"]]:
            notes.append(f"No memory was left in {row['network']}, {row['mode']}, for {', '.join(left_out)}.")
    chart = [(f"{r['network']} {r['mode']}", {p: o["ratio"] for p, o in r["peers"].items()}) for r in rows]
    caption = "Speed of each peer as a ratio to the fastest one that is not ours, by medians."
    environment = machine.environment()
    sections: list[page.Section] = [
        ("Ours against each peer", [overview(rows), *notes, page.Picture("ratios", caption, figures.bars(chart))]),
        *((f"{row['network']}, {row['mode']}, batch {row['batch']}", [
            table(row), f"Peak: {row['peak_gflops']:.0f} GFLOP/s in a float32 matrix product."]) for row in rows),
        ("Machine", [page.pairs(environment)]),
        ("About", [page.pairs({name: text for name, text in about.items() if name != "title"})]),
    ]  # fmt: skip
    footer = "Every slice's time is in results.json."
    page.write(folder, page.Page(about["title"], sections, footer))
    results = {"experiment": "benchmark", "config": record, "environment": environment, "rows": rows}
    runfolder.write_json(folder / "results.json", results)


def _control(row: dict[str, Any]) -> float:
    """The control's time over ours; 1 where there was none."""
    ours = row["peers"]["ours"]["median"]
    return row["peers"].get("control", {"median": ours})["median"] / ours


def installed(options: Options) -> tuple[tuple[str, ...], list[str]]:
    """Who races, and who could not be had. Raises `CnnjaxError` for a peer asked for that there is not."""
    for peer in options.peers:
        if peer not in PEERS:
            raise unknown("peer", peer, PEERS)
    absent = [peer for peer in PEERS if (library := peer.partition("-")[0]) in ("keras", "torch")
              and importlib.util.find_spec(library) is None]  # fmt: skip
    if missing := [peer for peer in options.peers if peer in absent]:
        raise CnnjaxError(f"not installed: {', '.join(missing)}\npip install 'cnnjax[peers]' brings the peers")
    asked = options.peers or tuple(peer for peer in PEERS if peer not in absent)
    return ("ours", *(peer for peer in asked if peer != "ours")), [] if options.peers else absent


def main(options: Options) -> None:
    from rich.console import Console

    for name in options.only:
        if name not in NETWORKS:
            raise unknown("network of the benchmark", name, NETWORKS)
    peers, absent = installed(options)
    if absent:
        print(f"not installed, and so not raced: {', '.join(absent)}; pip install 'cnnjax[peers]' brings them")
    record = {"experiment": "benchmark", **dataclasses.asdict(options), "peers": list(peers)}
    record = {name: list(v) if isinstance(v, tuple) else v for name, v in record.items()}
    record = {name: v for name, v in record.items() if name not in ("workdir", "fresh")}
    console = Console(width=150)
    with runfolder.opened(options.workdir, record, fresh=options.fresh):
        runfolder.write_json(options.workdir / "config.json", record)
        path, rows = options.workdir / "rows.json", []
        done = runfolder.read_json(path) if path.exists() else {}
        for name in options.only or NETWORKS:
            for mode in options.modes:
                if f"{name} {mode}" not in done:
                    done[f"{name} {mode}"] = measure(name, mode, peers, options)
                    runfolder.write_json(path, done)
                rows.append(done[f"{name} {mode}"])
                console.print(page.grid(table(rows[-1]), f"{name}, {mode}, batch {rows[-1]['batch']}"))
        write(options.workdir, record, rows, absent)
        console.print(page.grid(overview(rows), "Ours against each peer: times as fast"))
    print(f"report: {options.workdir / 'report.html'}")


if __name__ == "__main__":
    import tyro

    with exit_with_error():
        main(tyro.cli(Options, description=__doc__))
