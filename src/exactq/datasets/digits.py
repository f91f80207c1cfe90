"""scikit-learn's handwritten digits: 1,797 images 1×8×8 in ten classes, offline."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from exactq.datasets.splits import Dataset, in_memory

TEST_IMAGES = 360


def digits(*, calibration: int, seed: int) -> Dataset:
    """1,437 images to train on, `calibration` of them (chosen by `seed`) to calibrate, 360 others to evaluate.

    Inputs float32 (n, 1, 8, 8) in [0, 1], labels int64 (n,). The division is the same for every seed, so that accuracies
    compare, and stratified: each class has its share of both parts.
    """
    images, labels, train, test = _arrays()
    seen = in_memory((images[train],), labels[train])
    held = in_memory((images[test],), labels[test])
    return Dataset("digits", seen.shuffled(seed).first(calibration), held, seen, classes=10)


@lru_cache(maxsize=1)
def _arrays() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (1797, 1, 8, 8), labels (1797,), and the indices of the training and of the test images."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16  # scikit-learn's pixels are 0..16
    labels = torch.from_numpy(data.target).long()
    train, test = train_test_split(range(len(labels)), test_size=TEST_IMAGES, stratify=data.target, random_state=0)
    return images, labels, torch.tensor(train), torch.tensor(test)
