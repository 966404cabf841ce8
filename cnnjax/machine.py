"""What a run costs the machine, which machine that was, and what makes it cost less."""

import contextlib
import ctypes
import functools
import math
import os
import platform
import re
import resource
import sys
import zlib
from pathlib import Path
from typing import Any

from cnnjax import __version__
from cnnjax.download import cache_folder


def compile_seconds() -> float:
    """The seconds that this process has spent in XLA's compiler since the first call."""
    return _compilations()[0]


@functools.cache
def _compilations() -> list[float]:
    import jax

    total = [0.0]

    def add(event: str, duration_secs: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            total[0] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(add)
    return total


def peak_memory_mb() -> int:
    """The most memory that this process has had, in MB: on its first device, where that tells, else on the host."""
    import jax

    told = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in told:
        return round(told["peak_bytes_in_use"] / 1e6)
    return host_memory_mb()


def host_memory_mb() -> int:
    """The most memory that this process has had on the host, in MB."""
    with contextlib.suppress(OSError):  # on Linux getrusage would count the process that started this one
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6)
    unit = 1 if sys.platform == "darwin" else 1024  # the bytes in which the system counts
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def free_memory_mb(root: Path = Path("/")) -> float:
    """What more processes may take before there is no memory, in MB; infinity where that cannot be told.

    root: where Linux's proc and sys are.
    """
    free = [math.inf]
    with contextlib.suppress(OSError):
        free.append(int((root / "proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024)
    for group in _control_groups(root):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max", which is no limit
            limit, held = int((group / "memory.max").read_text()), (group / "memory.stat").read_text()
            free += [limit - int(anon) for anon in re.findall(r"^anon (\d+)$", held, re.MULTILINE)]  # not given back
    return min(free) / 1e6


def _control_groups(root: Path) -> list[Path]:
    """The groups (of a container, of a cluster's job) that this process is in, and that those are in."""
    top = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        told = re.search(r"^0::/(.*)$", (root / "proc/self/cgroup").read_text(), re.MULTILINE)
        own = top / (told[1] if told else "")
        return [own, *(group for group in own.parents if group.is_relative_to(top))]
    return []


def shares(jobs: int) -> list[set[int] | None]:
    """The cores that this process may use, divided among so many others; None where the system cannot divide them.

    Each has an equal share, or one core with others where there are too few.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return [None] * jobs
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[i % len(cores) :: jobs]) for i in range(jobs)]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Versions, processor, devices."""
    from importlib.metadata import version

    import jax

    devices = jax.devices()
    return {
        "cnnjax": __version__,
        **{name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": f"{len(devices)} × {devices[0].device_kind}",
    }


def begin() -> None:
    """What a command does first: compiled programs and memory pages are kept. Nothing where JAX is loaded already."""
    if "jax" not in sys.modules:
        keep_programs()
        if not any(path.exists() for path in map(Path, _ACCELERATORS)):
            keep_pages()


_ACCELERATORS = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")


def keep_programs() -> None:
    """Programs that took a second or more to compile are found again by later processes.

    They are in the user's cache folder, apart for each kind of processor, and may be deleted at any time. JAX's own
    variables win: `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing. To be called before JAX is loaded.
    """
    able = re.search(r"^flags\s*: (.+)$", _cpuinfo(), re.MULTILINE)  # home folders are shared by several kinds
    kind = (
        f"{re.sub(r'[^a-zA-Z0-9]+', '-', _processor()).strip('-')}-{zlib.crc32(able[1].encode() if able else b''):08x}"
    )
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "programs" / kind))


def keep_pages() -> bool:
    """Has glibc keep the memory that is freed, for XLA's CPU programs ask for it again at every step.

    A step of AlexNet (16 images) has 157,000 page faults without it and none with it, and takes three quarters of the
    time; the process may have up to twice the memory. False where nothing was changed: without glibc, or where a
    `MALLOC_` variable says what is wanted. To be called before JAX is loaded: threads keep the heap that they have.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.libc_ver()[0] == "glibc" else None
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    # malloc.h: M_ARENA_MAX, of which only the first can grow without end; M_MMAP_MAX; M_TRIM_THRESHOLD, never
    return all(mallopt(*setting) for setting in ((-8, 1), (-4, 0), (-1, -1)))


def _processor() -> str:
    model = re.search(r"^model name\s*: (.+)$", _cpuinfo(), re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _cpuinfo() -> str:
    """What Linux says of its processors."""
    with contextlib.suppress(OSError):
        return Path("/proc/cpuinfo").read_text()
    return ""
