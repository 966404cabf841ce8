"""Scores of a network on a split, every example counted once."""

from collections.abc import Mapping
from typing import Any

import jax

from cnnjax.data.pipeline import evaluation_batches
from cnnjax.data.splits import Split
from cnnjax.train.feed import Prepare
from cnnjax.train.losses import Loss
from cnnjax.train.state import Layers
from cnnjax.train.step import F32, Policy, eval_step

_eval_step = jax.jit(eval_step, static_argnums=(0, 1), static_argnames=("prepare", "policy", "skip"))


def evaluate(
    net: Any,
    loss: Loss,
    variables: Mapping[str, Layers],
    split: Split,
    *,
    prepare: Prepare,
    batch: int,
    policy: Policy = F32,
    skip: frozenset[str] = frozenset(),
) -> dict[str, float]:
    """{"error", "error5": per cent outside the best one and five, "loss": mean, "count": examples seen}.

    `skip`: layers to bypass, for lesion studies.
    """
    sums = [
        _eval_step(net, loss, variables, examples, prepare=prepare, policy=policy, skip=skip)
        for examples in evaluation_batches(split, batch)
    ]
    total = {name: sum(part[name].item() for part in parts) for parts in [jax.device_get(sums)] for name in parts[0]}
    count = total["count"]
    return {
        "error": 100 * (count - total["correct"]) / count,
        "error5": 100 * (count - total["correct5"]) / count,
        "loss": total["loss"] / count,
        "count": count,
    }
