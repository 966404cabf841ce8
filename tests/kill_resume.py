"""Kills a training run with SIGKILL again and again, at random moments and in the midst of saves, and compares its end.

`python tests/kill_resume.py --kills 20` prints how many kills there were, and whether the resumed run ended with the
same SHA-256 over all leaves of its state and the same metrics.jsonl, timings aside, as a run that nobody disturbed.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, LOG, EVALUATE, SAVE = 240, 5, 40, 12


def train(folder: Path) -> None:
    """One run, from wherever `folder` stands; prints a line per row, and at last the hash of its state."""
    import jax
    import numpy as np
    import optax

    from cnnjax.data.images import Transform
    from cnnjax.data.splits import Dataset, Split
    from cnnjax.models.chain import chain
    from cnnjax.models.layers import Conv, Dense, Dropout, Norm
    from cnnjax.train import losses, optim
    from cnnjax.train.loop import fit

    random = np.random.default_rng(0)
    image = random.integers(0, 256, (96, 8, 8, 1), dtype=np.uint8)
    split = Split(image, (image.mean(axis=(1, 2, 3)) > 127).astype(np.int32))
    net = chain(conv1=Conv(8, 3, norm=Norm()), drop2=Dropout(0.5), fc3=Dense(2, act=None))
    tx = optax.chain(
        optim.sgd(optim.step_decay(0.05, (150,)), momentum=0.9, weight_decay=1e-3), optim.plateau(patience=2)
    )
    run = fit(
        net,
        tx,
        losses.cross_entropy(),
        Dataset("noise", split, split, ("dark", "bright")),
        transform=Transform(mean=(0.5,)),
        batch=20,  # 96 / 20 is no whole number: batches lie across the ends of epochs
        steps=STEPS,
        seed=3,
        folder=folder,
        ema_decay=0.99,
        log_every=LOG,
        eval_every=EVALUATE,
        save_every=SAVE,
        on_log=lambda row: print("row", row["step"], flush=True),
    )
    leaves = jax.tree_util.tree_flatten_with_path(run.state)[0]
    told = hashlib.sha256()
    for path, leaf in leaves:
        told.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    print("sha256", told.hexdigest(), len(leaves), flush=True)


def start(folder: Path) -> subprocess.Popen:
    here = Path(__file__).resolve()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(here.parent.parent)}
    return subprocess.Popen(
        [sys.executable, str(here), "--train", str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )


def finish(folder: Path) -> tuple[str, list[dict]]:
    """Lets the run in `folder` end; its hash, and its rows without their timings."""
    out, _ = start(folder).communicate(timeout=300)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return out.splitlines()[-1], [{key: value for key, value in row.items() if key != "time"} for row in rows]


def kill(folder: Path, *, rows: int, saving: bool) -> bool:
    """Starts the run and kills it after so many rows and, if asked, in a save; False if it had ended before."""
    process = start(folder)
    assert process.stdout is not None
    for _ in range(rows):
        if not process.stdout.readline().startswith("row"):
            break
    while saving and process.poll() is None and not list((folder / "checkpoints").glob("*tmp*")):
        time.sleep(0.0005)
    time.sleep(0 if saving else random.random() * 0.03)
    process.kill()
    return process.wait() == -9


def compare(kills: int, seed: int = 0) -> tuple[int, int, bool]:
    """(kills that hit a running run, of them in a save that was never finished, whether the end was the same)."""
    random.seed(seed)
    with tempfile.TemporaryDirectory() as temporary:
        calm, disturbed = Path(temporary) / "calm", Path(temporary) / "disturbed"
        hits = torn = 0
        for number in range(kills):
            most = STEPS // LOG // kills
            hits += kill(disturbed, rows=random.randint(max(1, most // 2), most), saving=number % 2 == 1)
            torn += bool(list((disturbed / "checkpoints").glob("*tmp*")))
        return hits, torn, finish(disturbed) == finish(calm)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train)
    else:
        hits, torn, same = compare(arguments.kills)
        print(f"{hits} kills, {torn} of them in a save: the end is {'the same' if same else 'ANOTHER ONE'}")
        sys.exit(not same)
