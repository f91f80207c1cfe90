"""scikit-learn's digits."""

from __future__ import annotations

import torch

from exactq.datasets.catalog import load


def test_digits_are_images_between_zero_and_one_in_ten_classes() -> None:
    dataset = load("digits")
    images = torch.cat([batch.inputs[0] for batch in dataset.evaluation])
    assert images.shape == (360, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (float(images.min()), float(images.max())) == (0, 1)
    assert dataset.classes == 10


def test_the_division_is_stratified_disjoint_and_the_same_for_every_seed() -> None:
    for seed in (0, 1):
        dataset = load("digits", seed=seed)
        assert dataset.train is not None
        train, test = (
            [batch.labels for batch in split if batch.labels is not None] for split in (dataset.train, dataset.evaluation)
        )
        counts = [torch.cat(labels).bincount() for labels in (train, test)]
        assert int(counts[0].sum() + counts[1].sum()) == 1797
        assert (
            (counts[1] / (counts[0] + counts[1]) - 360 / 1797).abs() * (counts[0] + counts[1]) <= 1
        ).all()  # within one image
    first, second = (load("digits", seed=seed).evaluation for seed in (0, 1))
    assert all(torch.equal(a.inputs[0], b.inputs[0]) for a, b in zip(first, second, strict=True))


def test_the_seed_chooses_the_images_that_calibrate_out_of_those_that_train() -> None:
    def images(seed: int, calibration: int = 64) -> torch.Tensor:
        return torch.cat([batch.inputs[0] for batch in load("digits", seed=seed, calibration=calibration).calibration])

    assert torch.equal(images(0), images(0))
    assert not torch.equal(images(0), images(1))
    assert images(0, 100).shape[0] == 100
    train = load("digits").train
    assert train is not None
    known = {x.numpy().tobytes() for batch in train for x in batch.inputs[0]}
    assert {x.numpy().tobytes() for x in images(3)} <= known
