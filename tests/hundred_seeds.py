"""A hundred seeds of LeNet-5 in one call, against a hundred processes: `python tests/hundred_seeds.py [SEEDS EPOCHS]`.

Both train on `mnist5k` with the same settings. The processes are started one after the other, as a shell loop would,
once compiling each for itself and once with compiled programs kept; a few of them are timed, and the rest reckoned by
their mean. The errors of seeds that both trained are compared.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STARTED = 5  # processes that are timed, of each kind


def train(seeds: range, epochs: float) -> list[float]:
    """The test error of each seed, in %."""
    from cnnjax.data.sources import load
    from cnnjax.experiment import adam_recipe
    from cnnjax.models.lenet import lenet5
    from cnnjax.options import Config
    from cnnjax.train.loop import fit_many
    from cnnjax.train.recipe import arguments

    data = load("mnist5k")
    recipe = adam_recipe(Config(epochs=epochs, batch=128, learning_rate=8e-3), data)
    net = lenet5(10, pad=2, act="relu")
    runs = fit_many(net, data=data, seeds=seeds, **arguments(recipe, data), log_every=10**6)
    return [run.metrics["error"] for run in runs]  # pyright: ignore[reportAttributeAccessIssue]


def timed(*arguments: object, cache: str | None) -> tuple[float, list[float]]:
    begun = time.perf_counter()
    said = subprocess.run(
        [sys.executable, __file__, "train", *map(str, arguments), cache or "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    return time.perf_counter() - begun, json.loads(said.stdout.splitlines()[-1])


def main(seeds: int = 100, epochs: float = 2) -> None:
    together, errors = timed(0, seeds, epochs, cache=None)
    print(f"{seeds} seeds, {epochs:g} epochs each, in one call: {together:.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        timed(0, 1, epochs, cache=folder)
        for name, cache in {"each compiling for itself": None, "with compiled programs kept": folder}.items():
            found = [timed(seed, seed + 1, epochs, cache=cache) for seed in range(min(STARTED, seeds))]
            apart = [seconds for seconds, _ in found]
            mean = sum(apart) / len(apart)
            far = max(abs(error - errors[seed]) for seed, (_, [error]) in enumerate(found))
            print(
                f"a process each, {name}: {mean:.2f} s ({min(apart):.2f} to {max(apart):.2f}, n={len(apart)}), "
                f"{seeds} of them {mean * seeds:.0f} s: {mean * seeds / together:.1f} times as long; "
                f"errors differ by at most {far:.2f} points",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        first, stop, epochs, cache = sys.argv[2:]
        sys.path.insert(0, str(Path(__file__).parent.parent))
        import jax

        if cache != "-":
            jax.config.update("jax_compilation_cache_dir", cache)
        print(json.dumps(train(range(int(first), int(stop)), float(epochs))))
    else:
        main(*map(int, sys.argv[1:2]), *map(float, sys.argv[2:3]))
