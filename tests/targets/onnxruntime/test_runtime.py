"""The real runtime: which arithmetic this machine has, and errors in its own words."""

from __future__ import annotations

import platform

import pytest
import torch
from tests.targets.networks import WHOLE, batch, quantized

from exactq.errors import TargetError
from exactq.kernels.mlas import ISAS, SATURATES
from exactq.targets.onnxruntime import ONNXRUNTIME, runtime

pytestmark = pytest.mark.runtime


def test_the_instruction_set_is_what_the_runtime_itself_answers() -> None:
    isa = runtime.detect_isa()
    assert isa in ISAS
    assert SATURATES[isa] == runtime.saturates_here()


def test_a_machine_that_was_not_measured_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(TargetError, match=r"on aarch64 were not measured: name one that was, as in onnxruntime@avx2"):
        runtime.detect_isa()


def test_a_file_opened_to_be_timed_answers_as_the_default_session() -> None:
    model, inputs = quantized(WHOLE[4]).artifact(), batch(WHOLE[4], 3, 3)
    default = ONNXRUNTIME.open(model).run(inputs)
    for threads in (1, 2):
        found = ONNXRUNTIME.timed(model, threads)(inputs)
        assert all(torch.equal(a, b) for a, b in zip(found, default, strict=True))


def test_inputs_of_any_memory_order_are_taken() -> None:
    model, (x, y) = quantized(WHOLE[4]).artifact(), batch(WHOLE[4], 3, 3)
    opened = ONNXRUNTIME.open(model)
    plain, other = opened.run((x, y)), opened.run((x.contiguous(memory_format=torch.channels_last), y.T.contiguous().T))
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_a_missing_input_is_an_error_that_names_them() -> None:
    opened = ONNXRUNTIME.open(quantized(WHOLE[4]).artifact())
    with pytest.raises(TargetError, match=r"the file takes 2 inputs \(.+, .+\), not 1"):
        opened.run(batch(WHOLE[4], 3, 3)[:1])
