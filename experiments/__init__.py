"""The experiments: one file for each claim, run as `python -m experiments.NAME`; `python -m experiments` lists them."""

from cnnjax import machine

machine.begin()  # before anything loads JAX
