"""Every test runs on the CPU, as eight devices, and may ask for JAX's strict flags.

`CNNJAX_TEST_FORMS=reference pytest` runs all of them on the operations' reference forms.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu, where installed, would look for a host
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

from cnnjax.models import ops


@pytest.fixture(scope="session", autouse=True)
def forms():
    """The forms that the environment asks for, around every test."""
    with ops.reference_forms(os.environ.get("CNNJAX_TEST_FORMS") == "reference"):
        yield


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def strict():
    """No silent broadcasting of ranks and no silent dtype promotion: around our own code, never around optax."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
