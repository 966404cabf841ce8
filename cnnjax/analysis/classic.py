"""Classifiers without a network, through scikit-learn: what convolutional networks were first compared with.

Each is a function (images, labels, test images) -> labels of the latter; images are uint8 [B, H, W, C].
"""

from typing import Any

import numpy as np


def _rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255


def nearest_neighbours(images: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """The vote of the three nearest images, by Euclidean distance."""
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(3).fit(_rows(images), labels).predict(_rows(test))


def gaussian_svm(images: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """A support vector machine with a Gaussian kernel."""
    from sklearn.svm import SVC

    return SVC(C=5).fit(_rows(images), labels).predict(_rows(test))


def deskew(images: np.ndarray) -> np.ndarray:
    """Every image sheared along its rows until its ink stands upright, and moved to the middle: float64 [B, H, W]."""
    from scipy.ndimage import affine_transform

    found, (rows, columns) = [], np.mgrid[: images.shape[1], : images.shape[2]]
    for ink in images.mean(-1):
        total = max(ink.sum(), 1e-6)
        y, x = (ink * rows).sum() / total, (ink * columns).sum() / total
        slant = (ink * (rows - y) * (columns - x)).sum() / max((ink * (rows - y) ** 2).sum(), 1e-6)
        shear, middle = np.array([[1, 0], [slant, 1]]), (np.array(ink.shape) - 1) / 2
        offset: Any = np.array([y, x]) - shear @ middle
        found.append(affine_transform(ink, shear, offset, order=1))
    return np.stack(found)


def virtual_svm(images: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """A virtual support vector machine of degree 9 on deskewed images.

    D. DeCoste, B. Schölkopf, "Training invariant support vector machines", Machine Learning 2002: it is trained again
    on its support vectors and their shifts, here by 1 and 2 pixels along the axes.
    """
    from sklearn.svm import SVC

    def rows(pixels: np.ndarray) -> np.ndarray:
        flat = pixels.reshape(len(pixels), -1)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)

    def fitted(pixels: np.ndarray, labels: np.ndarray) -> Any:
        kernel: Any = {"kernel": "poly", "degree": 9, "gamma": 0.5, "coef0": 0.5}
        return SVC(C=10, **kernel).fit(rows(pixels), labels)

    train = deskew(images)
    held = fitted(train, labels).support_
    shifts = [(dy * far, dx * far) for far in (1, 2) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    moved = [train[held], *(np.roll(train[held], shift, (1, 2)) for shift in shifts)]
    return fitted(np.concatenate(moved), np.tile(labels[held], len(moved))).predict(rows(deskew(test)))
