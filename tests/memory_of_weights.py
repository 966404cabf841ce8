"""Reads VGG-16 (528 MB) from every format: how much memory it takes beside the file, and how long beside reading it.

`python tests/memory_of_weights.py` writes random weights of the real shapes into a folder, and for each format prints
the most memory that reading all tensors has added, over the size of the file, and the time, over that of reading the
bytes of the file. Each is measured in processes of their own, the best time of `--repeat`; seconds are the processor's,
since others may be at work, and the file is in the page cache. The exit code is 1 where it is more than 1.3 times the
memory or twice the time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import weight_files

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
MEMORY, TIME = 1.3, 2.0


def vgg16() -> dict[str, np.ndarray]:
    """Random weights with the shapes of torchvision's VGG-16: 138,357,544 parameters."""
    rng, tensors = np.random.default_rng(0), {}
    shapes = [(out, inside, 3, 3) for inside, out in zip((3, *WIDTHS), WIDTHS, strict=False)]
    for i, shape in enumerate([*shapes, (4096, 25088), (4096, 4096), (1000, 4096)]):
        tensors[f"{i}.weight"] = rng.random(shape, np.float32)
        tensors[f"{i}.bias"] = rng.random(shape[0], np.float32)
    return tensors


def caffe(tensors: Mapping[str, np.ndarray]) -> bytes:
    return weight_files.caffe({name: [weight_files.blob(values)] for name, values in tensors.items()})


def onnx(tensors: Mapping[str, np.ndarray]) -> bytes:
    return weight_files.onnx(weight_files.initialiser(name, values) for name, values in tensors.items())


def torch(write: Callable) -> Callable[[Mapping[str, np.ndarray]], bytes]:
    return lambda tensors: write(weight_files.state_dict(tensors), weight_files.storages(tensors))


FORMATS: dict[str, Callable[[Mapping[str, np.ndarray]], bytes]] = {
    "vgg16.safetensors": weight_files.safetensors,
    "zip.pth": torch(weight_files.torch_zip),
    "stream.pth": torch(weight_files.torch_stream),
    "vgg16.npz": weight_files.npz,
    "vgg16.caffemodel": caffe,
    "vgg16.onnx": onnx,
    "vgg16.h5": weight_files.hdf5,
}

BYTES = """
import sys, time
start = time.process_time()
with open(sys.argv[1], "rb") as file:
    content = file.read()
print(time.process_time() - start, 0)
"""
TENSORS = """
import resource, sys, time
import numpy as np
from cnnjax.weights.read import read
try:
    import h5py
except ImportError:
    pass
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
tensors = read(sys.argv[1])
held = {name: tensors[name] for name in tensors}
seconds = time.process_time() - start
assert sum(values.size for values in held.values()) == 138_357_544
print(seconds, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def measure(code: str, path: Path, repeat: int) -> tuple[float, int]:
    """(the least seconds, the most bytes)."""
    found = []
    for _ in range(repeat):
        time.sleep(0.2)
        out = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout
        found.append(out.split())
    return min(float(seconds) for seconds, _ in found), max(int(memory) for _, memory in found)


def main(names: list[str], folder: Path, repeat: int) -> int:
    bad = 0
    print(f"{'file':20} {'MB':>5} {'memory / file':>14} {'seconds':>8} {'of its bytes':>13} {'time / time':>12}")
    for name in names:
        path = folder / name
        try:
            process = os.fork()  # it gives its memory back
            if not process:
                path.write_bytes(FORMATS[name](vgg16()))
                os._exit(0)
            if os.waitpid(process, 0)[1]:
                print(f"{name:20} cannot be written here")
                continue
            plain, _ = measure(BYTES, path, repeat)
            seconds, memory = measure(TENSORS, path, repeat)
            size = path.stat().st_size
            bad += memory > MEMORY * size or seconds > TIME * plain
            print(
                f"{name:20} {size >> 20:5} {memory / size:14.2f} {seconds:8.2f} {plain:13.2f} {seconds / plain:12.2f}"
            )
        finally:
            path.unlink(missing_ok=True)
    return int(bad > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=[*FORMATS], metavar="FILE")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    sys.exit(main(arguments.only, arguments.folder, arguments.repeat))
