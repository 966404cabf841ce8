"""What a command keeps for the next step and for the next run, and how that is switched off."""

import os
import subprocess
import sys

import pytest

from cnnjax import machine

PROGRAM = """
from cnnjax import machine
machine.begin()
import jax, jax.numpy as jnp
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event.endswith("/cache_hits")))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
print(sum(found))
"""
ARRAYS = """
import resource
from cnnjax import machine
kept = machine.keep_pages()
def pages():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**25
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun
first, *later = [pages() for _ in range(5)]
print(kept, first, max(later))
"""


def python(program: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "JAX_"))}
    said = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**clean, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **environment},
    )
    assert said.returncode == 0 and said.stderr == "", said.stderr
    return said.stdout.strip()


def test_a_program_is_compiled_once_for_all_processes(tmp_path):
    assert python(PROGRAM, CNNJAX_CACHE=str(tmp_path)) == "0"
    [kind] = (tmp_path / "programs").iterdir()
    assert any(kind.glob("*-cache"))
    assert int(python(PROGRAM, CNNJAX_CACHE=str(tmp_path))) > 0


def test_jaxs_own_switches_win(tmp_path):
    assert python(PROGRAM, CNNJAX_CACHE=str(tmp_path / "a"), JAX_ENABLE_COMPILATION_CACHE="false") == "0"
    assert not (tmp_path / "a").exists()
    python(PROGRAM, CNNJAX_CACHE=str(tmp_path / "a"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "b"))
    assert not (tmp_path / "a").exists() and any((tmp_path / "b").glob("*-cache"))


def test_where_jax_is_loaded_already_nothing_is_changed(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(machine, "keep_pages", lambda: pytest.fail("the allocator was changed"))
    machine.begin()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="no glibc"
)
def test_memory_is_asked_of_the_system_once():
    kept, first, later = python(ARRAYS).split()
    assert kept == "True" and 10 * int(later) < int(first)
    kept, first, later = python(ARRAYS, MALLOC_ARENA_MAX="8").split()
    assert kept == "False" and 2 * int(later) > int(first)
