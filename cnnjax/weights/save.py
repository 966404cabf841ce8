"""Trained weights out: a folder of safetensors, config.json and a model card.

Where timm has the network, timm loads it; Hugging Face's hub takes the folder as it is.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from cnnjax.data.images import Transform
from cnnjax.errors import CnnjaxError
from cnnjax.models.catalog import CATALOG
from cnnjax.models.chain import Chain
from cnnjax.models.surgery import with_head
from cnnjax.weights.convert import to_ours, to_source
from cnnjax.weights.paths import sites
from cnnjax.weights.ports import PORTS


def save(
    folder: Path,
    net: Chain,
    variables: Mapping[str, Any],
    *,
    image_shape: tuple[int, int, int],
    transform: Transform,
    data: str,
    recipe: str,
    accuracy: Mapping[str, float],
    licence: str = "apache-2.0",
    names: tuple[str, ...] = (),
) -> Path:
    """Writes `net` and its variables, and returns the folder; `cnnjax.weights.records.load` reads it.

    The card says what was trained on (`data`), how (`recipe`) and what was measured (`accuracy`: "top-1", "top-5", …
    in %); `names` are those of the classes. Where the network is one that timm has, the names in the file are timm's.

    Raises `CnnjaxError` where the folder holds something, values are not finite, or the network is neither timm's nor,
    but for its number of classes, in the catalogue.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CnnjaxError(f"{folder} is not empty; weights are saved into a folder of their own")
    for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
        if not np.isfinite(leaf).all():
            raise CnnjaxError(f"the weights {jax.tree_util.keystr(path)} are not finite; they are not saved")
    classes = [site for site in sites(dataclasses.replace(net, aux=()))][-1].module.features  # type: ignore[attr-defined]
    source, architecture = _identity(net, classes)
    tensors = to_ours(variables) if source == "cnnjax" else to_source(source, architecture, net, variables)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()}, partial / "model.safetensors",
              metadata={"format": "pt" if source == "timm" else "np"})  # fmt: skip
    with open(partial / "model.safetensors", "rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    facts = {
        "source": source,
        "architecture": architecture,
        "classes": classes,
        "names": list(names),
        "image_shape": image_shape,
        "transform": dataclasses.asdict(transform),
        "data": data,
        "recipe": recipe,
        "accuracy": dict(accuracy),
        "licence": licence,
        "digest": digest,
    }
    timm = _timm(architecture, classes, image_shape, transform, names) if source == "timm" else {}
    (partial / "config.json").write_text(json.dumps({**timm, "cnnjax": facts}, indent=2) + "\n")
    (partial / "README.md").write_text(_card(facts, names))
    if folder.exists():
        folder.rmdir()
    return partial.rename(folder)


def _identity(net: Chain, classes: int) -> tuple[str, str]:
    """Whose names the network has, and which."""
    plain = dataclasses.replace(net, aux=())
    for architecture, port in PORTS["timm"].items():
        if dataclasses.replace(port.make(classes=classes), aux=()) == plain:
            return "timm", architecture
    for name, row in CATALOG.items():
        made = row.make()
        if net in (made, with_head(made, classes) if _has_head(made) else made):
            return "cnnjax", name
    raise CnnjaxError(
        "the network is neither timm's nor in the catalogue, so that nobody could tell what the weights belong to\n"
        "what keeps the weights of any network is a checkpoint"
    )


def _has_head(net: Chain) -> bool:
    try:
        with_head(net, 2)
    except CnnjaxError:
        return False
    return True


def _timm(
    architecture: str, classes: int, image_shape: tuple[int, int, int], transform: Transform, names: tuple[str, ...]
) -> dict[str, Any]:
    """What timm reads of config.json. Its images are RGB from 0 to 1 before mean and standard deviation."""
    if transform.order != "RGB" or transform.scale != 1:
        raise CnnjaxError("timm's images are RGB, 0 to 1: it has no transform of order BGR or scale 255")
    height, width, channels = image_shape
    return {
        "architecture": architecture,
        "num_classes": classes,
        "pretrained_cfg": {
            "input_size": [channels, height, width],
            "fixed_input_size": False,
            "interpolation": transform.interpolation,
            "crop_pct": transform.crop_pct,
            "crop_mode": "center" if transform.resize == "shorter" else "squash",
            "mean": list(transform.mean) * (channels if len(transform.mean) == 1 else 1),
            "std": list(transform.std) * (channels if len(transform.std) == 1 else 1),
            "num_classes": classes,
            **({"label_names": list(names)} if names else {}),
        },
    }


def _card(facts: Mapping[str, Any], names: tuple[str, ...]) -> str:
    library = "timm" if facts["source"] == "timm" else "cnnjax"
    scores = "\n".join(f"| {what} | {value:.2f} % |" for what, value in facts["accuracy"].items())
    height, width, channels = facts["image_shape"]
    classes = f"{facts['classes']} classes" + (f": {', '.join(names)}" if names else "")
    use = (
        'timm.create_model("local-dir:FOLDER", pretrained=True)'
        if library == "timm"
        else 'cnnjax.weights.records.load("FOLDER")'
    )
    return f"""---
license: {facts["licence"]}
library_name: {library}
pipeline_tag: image-classification
tags:
- image-classification
- {library}
---
# {facts["architecture"]}

Trained with cnnjax. Images {height}×{width}×{channels}, {classes}.

| measured | |
|---|---|
{scores}

- Data: {facts["data"]}
- Recipe: {facts["recipe"]}
- Preprocessing: {", ".join(f"{name} {value}" for name, value in facts["transform"].items())}
- model.safetensors: {facts["digest"]}

```python
{use}
```
"""
