"""Two processes of four CPU devices each, joined by jax.distributed, against one process of eight.

python tests/two_processes.py FOLDER [STEPS]
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(folder: Path, steps: int) -> float:
    """Trains in `folder` both ways; how far the states are apart, over max(1, the largest value of the leaf)."""
    import numpy as np

    port = free_port()
    pair = [start(folder, steps, 4, port, index) for index in range(2)]
    [alone] = [start(folder, steps, 8, None, 0)]
    for process in (*pair, alone):
        told = process.communicate(timeout=500)[0]
        assert process.returncode == 0, told
    states = [dict(np.load(folder / name)) for name in ("two-0.npz", "two-1.npz", "one.npz")]
    assert states[0].keys() == states[2].keys()
    rows = [(folder / name / "metrics.jsonl").read_text().count("\n") for name in ("two", "one")]
    assert rows[0] == rows[1]
    return max(
        float(np.abs(state[name] - value).max() / max(1.0, np.abs(value).max()))
        for state in states[:2]
        for name, value in states[2].items()
        if value.size
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(folder: Path, steps: int, devices: int, port: int | None, index: int) -> subprocess.Popen:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
    }
    command = [
        sys.executable,
        str(HERE / "two_processes.py"),
        "--worker",
        str(folder),
        str(steps),
        str(port),
        str(index),
    ]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def worker(folder: Path, steps: int, port: str, index: int) -> None:
    import jax

    if port != "None":
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=index)
    assert jax.device_count() == 8
    import numpy as np
    from test_train import DATA, FRAME, LOSS, NET, Lazy

    from cnnjax.train import checkpoint, optim
    from cnnjax.train.loop import fit
    from cnnjax.train.parallel import Launch

    name = "one" if port == "None" else "two"
    data = DATA._replace(train=DATA.train._replace(image=Lazy(DATA.train.image)))
    how = {"transform": FRAME, "batch": 16, "log_every": 5, "save_every": 10, "launch": Launch(devices=8)}
    tx = optim.sgd(0.01, momentum=0.9)
    for until in (steps // 2, steps):  # the second call goes on from the first one's checkpoint
        done = fit(NET, tx, LOSS, data, seed=0, folder=folder / name, steps=until, **how)
    state = {key: np.asarray(value) for key, value in checkpoint._named(jax.device_get(done.state)).items()}
    np.savez(folder / (f"two-{index}.npz" if name == "two" else "one.npz"), **state)


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        worker(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        print(run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20))
