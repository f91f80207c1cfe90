"""What is said about samples that were left out."""

from __future__ import annotations

import torch

from exactq.datasets.leftout import LeftOut, Samples, UnreadableError, remarks


def test_a_sample_that_was_left_out_is_not_read_again_and_counts_once() -> None:
    reads: list[int] = []

    def read(index: int) -> torch.Tensor:
        reads.append(index)
        if index == 1:
            raise UnreadableError("damaged")
        return torch.tensor([index])

    samples = Samples(read, lambda index: f"sample {index}", torch.zeros(3, dtype=torch.int64), ["a"])
    left_out = LeftOut()
    for _ in range(2):
        found = samples.those_readable(torch.tensor([2, 1, 0]), left_out)
        assert found is not None
        assert found[0].flatten().tolist() == [2, 0]
    assert samples.those_readable(torch.tensor([1]), left_out) is None
    assert reads.count(1) == 1
    assert remarks([left_out]) == ["1 of 3 images could not be decoded and was left out: sample 1 (damaged)"]


def test_a_sample_that_is_asked_for_twice_comes_twice() -> None:
    samples = Samples(lambda index: torch.tensor([index]), str, torch.zeros(3, dtype=torch.int64), ["a"])
    found = samples.those_readable(torch.tensor([2, 2]), LeftOut())
    assert found is not None
    assert found[0].flatten().tolist() == [2, 2]


def test_the_sentence_does_not_depend_on_the_order_in_which_they_were_met() -> None:
    a, b = LeftOut({0, 1}, {0: "x (1)", 1: "a (2)"}), LeftOut({0, 1}, {1: "a (2)", 0: "x (1)"})
    assert remarks([a]) == remarks([b]) == ["2 of 2 images could not be decoded and were left out: a (2), x (1)"]
