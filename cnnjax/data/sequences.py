"""Data that are no pictures, as images for a convolution along one side: the letters of words, and sounds."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cnnjax.data.splits import Dataset, Split, permutation
from cnnjax.errors import CnnjaxError

TRAIN, TEST = 4000, 1000
ALPHABET, SHORTEST, LONGEST = "abcdefghijklmnopqrstuvwxyz", 4, 12


def _dataset(name: str, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Dataset:
    order = permutation(len(labels), 1)[: TRAIN + TEST]
    image, label = images[order], labels[order].astype(np.int32)
    return Dataset(name, Split(image[:-TEST], label[:-TEST]), Split(image[-TEST:], label[-TEST:]), tuple(classes))


@functools.cache
def letters(files: tuple[Path, ...]) -> Dataset:
    """Words as images, letters down and places across: [26, 12, 1]; a class for each language.

    files: the words of a language each, one a line; none: made-up words of four languages. Raises `CnnjaxError` for a
    single file, one that cannot be read, or too few words of 4 to 12 letters without accents.
    """
    if len(files) == 1:
        raise CnnjaxError("--words names one language\ngive it for two or more")
    lists = [_words(file) for file in files] or _made_up_words()
    each = min((TRAIN + TEST) // len(lists), *map(len, lists))
    chosen = [found[i] for found in lists for i in permutation(len(found), 2)[:each]]
    images = np.zeros((len(chosen), len(ALPHABET), LONGEST, 1), np.uint8)
    for image, word in zip(images, chosen, strict=True):
        image[[ALPHABET.index(letter) for letter in word], np.arange(len(word))] = 255
    names = [file.stem for file in files] or [f"language {i}" for i in range(len(lists))]
    return _dataset("words", images, np.repeat(np.arange(len(lists)), each), names)


def _words(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise CnnjaxError(f"cannot read the words in {file}: {error}") from error
    found = sorted({word for word in lines if SHORTEST <= len(word) <= LONGEST and set(word) <= set(ALPHABET)})
    if len(found) < TEST:
        what = f"words of {SHORTEST} to {LONGEST} small letters a to z"
        raise CnnjaxError(f"{file} has {len(found)} {what}; {TEST} are needed")
    return found


def _made_up_words() -> list[list[str]]:
    """1,250 words of each of four languages, in which the next letter depends on the last alone."""
    draw = np.random.default_rng(0)
    follows = draw.dirichlet(np.ones(26), (4, 26)).cumsum(-1)
    language = np.repeat(np.arange(4), (TRAIN + TEST) // 4)
    drawn = [draw.integers(0, 26, len(language))]
    for _ in range(LONGEST - 1):
        beyond = draw.random((len(language), 1)) > follows[language, drawn[-1], :-1]
        drawn.append(beyond.sum(-1))
    lengths = draw.integers(SHORTEST, LONGEST + 1, len(language))
    found = ["".join(ALPHABET[i] for i in row[:n]) for row, n in zip(np.transpose(drawn), lengths, strict=True)]
    return [[word for word, of in zip(found, language, strict=True) if of == i] for i in range(4)]


@functools.cache
def sounds() -> Dataset:
    """Spectrograms [16, 32, 1], pitch down and time across: a tone in noise that rises, falls, does both, or stays."""
    draw, labels, time = np.random.default_rng(1), np.arange(TRAIN + TEST) % 4, np.arange(12)
    images = draw.integers(0, 170, (len(labels), 16, 32, 1)).astype(np.uint8)
    shapes = np.stack([time / 2, 5.5 - time / 2, 5.5 - abs(time - 5.5), np.full(12, 2.5)]).round().astype(int)
    for image, label in zip(images, labels, strict=True):
        image[draw.integers(0, 10) + shapes[label], draw.integers(0, 20) + time] += 85
    return _dataset("sounds", images, labels, ("rises", "falls", "does both", "stays"))
