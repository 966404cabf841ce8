"""What a run costs the machine, and which machine that was."""

import contextlib
import functools
import os
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Any

from cnnjax import __version__


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


def _processor() -> str:
    with contextlib.suppress(OSError):  # there on Linux only
        if model := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return model[1]
    return platform.processor() or platform.machine()
