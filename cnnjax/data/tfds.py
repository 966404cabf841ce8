"""Data sets of TensorFlow Datasets that were prepared as ArrayRecord, read without TensorFlow."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnjax.data.splits import EncodedImages, Split, Stored
from cnnjax.errors import CnnjaxError

SPLITS = ("train", "test", "validation")


class Column(Sequence):
    """One feature of a data source: `column[i]` is the feature of record i."""

    def __init__(self, source: Sequence[Any], key: str):
        self.source, self.key = source, key

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, record):
        return self.source[record][self.key]


def read(where: str) -> Stored:
    """Read NAME, or NAME@DIR where the set is not in TFDS's own data folder; NAME may bear a config and a version.

    The images stay encoded. Labels are read at once, which for ImageNet means minutes.

    Raises: CnnjaxError where the set is unknown, not prepared as ArrayRecord, or not of images with one label each.
    """
    import tensorflow_datasets as tfds

    name, _, folder = where.partition("@")
    try:
        builder: Any = tfds.builder(name, data_dir=os.path.expanduser(folder) or None)
        sources = _sources(builder, where)
    except CnnjaxError:
        raise
    except Exception as error:  # a builder's own code ran
        said = [line.rpartition('}": ')[2].strip()[:200] for line in str(error).splitlines() if line.strip()]
        said = [line for line in said if line.startswith("Did you mean")] or said[:1]
        raise CnnjaxError("\n".join([f"tfds:{where}: TensorFlow Datasets cannot open it", *said])) from error
    features = dict(builder.info.features.items())
    image, label = map(str, (builder.info.supervised_keys or ("image", "label"))[:2])
    wanted = {image: tfds.features.Image, label: tfds.features.ClassLabel}
    if not sources or not all(isinstance(features.get(key), kind) for key, kind in wanted.items()):
        raise CnnjaxError(
            f"tfds:{where} is not a set of images to train on with one label each\n"
            f"its features: {', '.join(features)}; its splits: {', '.join(builder.info.splits)}"
        )
    channels = 1 if features[image].shape[-1] == 1 else 3
    splits = {}
    for split, source in sources.items():
        # Images stay bytes: ours we decode as safely as any other file, others (masks) nobody asks for
        source.decoders = {
            key: tfds.decode.SkipDecoding() for key in features if isinstance(features[key], tfds.features.Image)
        }
        labels = np.fromiter((record[label] for record in source), np.int64, len(source))
        images = EncodedImages(Column(source, image), np.arange(len(source)), f"tfds:{where} {split}", channels)
        splits[split] = Split(images, labels)
    return Stored(splits, tuple(features[label].names))


def _sources(builder: Any, where: str) -> dict[str, Any]:
    known = builder.info.splits  # empty before a set is prepared; asking for the usual splits then says what is wrong
    try:
        return {split: builder.as_data_source(split) for split in SPLITS if split in (known or ("train", "test"))}
    except (ValueError, AssertionError, NotImplementedError) as error:
        name, _, folder = where.partition("@")
        arguments = f"'{name}'" + (f", data_dir='{folder}'" if folder else "")
        raise CnnjaxError(
            f"tfds:{where} is not prepared as ArrayRecord in {builder.data_dir}\nprepare it once: "
            f'python -c "import tensorflow_datasets as t; t.builder({arguments})'
            ".download_and_prepare(file_format='array_record')\"\n"
            "where that stops for want of TensorFlow, `pip install tensorflow` and repeat it; reading needs none\n"
            "(mnist, fashion_mnist, cifar10 and cifar100 come without TensorFlow: leave out `tfds:`)"
        ) from error
