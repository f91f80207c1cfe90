"""The file of PyTorch's engines, its loader, and what both refuse."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from tests.targets.networks import WHOLE, batch, quantized

import exactq
from exactq.errors import TargetError, UsageError
from exactq.graphs.programs import program
from exactq.graphs.qdq import CODES
from exactq.targets import TARGETS
from exactq.targets.pytorch import runtime
from exactq.targets.pytorch.emit import emit, fold, read
from exactq.traces import trace, walk

RESNET, SEVERAL = WHOLE[0], WHOLE[4]
ENGINES = ("fbgemm", "x86", "onednn", "qnnpack")


@pytest.mark.parametrize("engine", ENGINES)
def test_codes_are_at_most_a_step_from_the_float_graph_of_the_same_codes(engine: str) -> None:
    made = quantized(RESNET, target=engine)
    inputs = batch(RESNET, 8, 5)
    ours = trace(made.program(), inputs)
    kept: dict[str, torch.Tensor] = {}
    reference = program(made.graph)
    walk(reference, inputs, lambda step, value: kept.__setitem__(step.name, value))
    for name in [n for n in ours if n.endswith(CODES)]:
        away = (ours[name].int() - kept[name].int()).abs()
        assert int(away.max()) <= 2, name  # its own step, and one of what it reads


def test_a_file_holds_weights_as_int8_and_reads_back_as_the_same_graph() -> None:
    made = quantized(RESNET, target="fbgemm")
    data = made.artifact()
    found = read(data)
    assert found.engine == "fbgemm"
    weights = {name: t for name, t in found.graph.constants.items() if name.endswith("weight")}
    assert weights
    assert {t.dtype for t in weights.values()} == {torch.int8}
    assert emit("fbgemm", found.graph) == data
    assert len(data) < len(made.target.emit(made.float_graph))


def test_folding_changes_no_code() -> None:
    made = quantized(RESNET, target="onednn")
    inputs = batch(RESNET, 3, 1)
    first, second = (walk(TARGETS["onednn"].lower(graph, "avx2"), inputs) for graph in (made.graph, fold(made.graph)))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.runtime
def test_a_float_file_is_what_torch_computes() -> None:
    made = quantized(SEVERAL, target="qnnpack")
    inputs = batch(SEVERAL, 4, 1)
    answers = made.target.timed(made.target.emit(made.float_graph), 1)(inputs)
    assert all(torch.equal(a, b) for a, b in zip(answers, walk(program(made.float_graph), inputs), strict=True))


@pytest.mark.runtime
def test_engine_and_threads_are_as_they_were() -> None:
    made = quantized(RESNET, target="qnnpack")
    before = torch.backends.quantized.engine, torch.get_num_threads()
    run = made.target.timed(made.artifact(), 1)
    run(batch(RESNET, 2, 1))
    assert (torch.backends.quantized.engine, torch.get_num_threads()) == before


@pytest.mark.runtime
def test_answers_do_not_depend_on_the_number_of_threads_or_on_strides() -> None:
    made = quantized(WHOLE[2], target="fbgemm")
    (x,) = batch(WHOLE[2], 64, 3)
    loaded = made.target.open(made.artifact())
    (alone,) = loaded.run((x,))
    with runtime.threads(2):
        (two,) = loaded.run((x.to(memory_format=torch.channels_last),))
    assert torch.equal(alone, two)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not one of exactq's for PyTorch's engines"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "its header lacks '__metadata__'"),
        (struct.pack("<Q", 40) + b'{"__metadata__":{"exactq":"{\\"a\\":1}"}} ', "its header lacks 'engine'"),
        (struct.pack("<Q", 32) + b'{"__metadata__":{"exactq":"[]"}}', "is not one of exactq's"),
    ],
)
def test_what_is_no_file_of_these_targets_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        read(data)


def test_a_file_with_other_tensors_is_refused() -> None:
    data = bytearray(quantized(RESNET, target="fbgemm").artifact())
    data[-1] ^= 1
    with pytest.raises(TargetError, match="the tensors are damaged or of another graph"):
        read(bytes(data))


def test_a_file_of_another_engine_is_refused_by_name() -> None:
    data = quantized(RESNET, target="fbgemm").artifact()
    with pytest.raises(TargetError, match="the file was made for the engine fbgemm, not onednn: export the model for onednn"):
        TARGETS["onednn"].open(data)
    assert (
        json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["exactq"])["engine"] == "fbgemm"
    )


@pytest.mark.runtime
def test_a_wrong_number_of_inputs_and_wrong_shapes_are_named() -> None:
    loaded = TARGETS["fbgemm"].open(quantized(SEVERAL, target="fbgemm").artifact())
    x, y = batch(SEVERAL, 2, 1)
    with pytest.raises(TargetError, match=r"the file takes 2 inputs \(.*\), not 1"):
        loaded.run((x,))
    with pytest.raises(TargetError, match=r"PyTorch .* fails in `relu/codes` \(quantized::conv2d_relu\): .*3 channels"):
        loaded.run((x[:, :2], y))


def test_an_engine_that_is_not_built_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        supported_engines = ("qnnpack",)

    monkeypatch.setattr(torch.backends, "quantized", Without)
    with pytest.raises(TargetError, match="has no quantized engine 'fbgemm', only qnnpack"), runtime.engine("fbgemm"):
        pass


@pytest.mark.parametrize(
    ("machine", "width", "saturates", "answer"),
    [
        ("x86_64", "AVX512", (False, False), "avx512vnni"),
        ("x86_64", "AVX2", (True, True), "avx2"),
        ("x86_64", "AVX512", (True, True), "ATen has AVX512, and products saturate"),
        ("x86_64", "AVX2", (False, False), "ATen has AVX2, and products do not saturate"),
        ("aarch64", "DEFAULT", (False, False), "name an instruction set, as in fbgemm@avx2"),
    ],
)
def test_the_instruction_set_is_what_the_engine_answers(
    monkeypatch: pytest.MonkeyPatch, machine: str, width: str, saturates: tuple[bool, bool], answer: str
) -> None:
    monkeypatch.setattr(runtime.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: width)
    monkeypatch.setattr(runtime, "_saturates", lambda name: saturates)
    detect = runtime.detect_isa.__wrapped__
    if answer in TARGETS["fbgemm"].isas:
        assert detect("fbgemm") == answer
    else:
        with pytest.raises(TargetError, match=answer):
            detect("fbgemm")


def test_biases_stay_real_but_for_qnnpack() -> None:
    kinds = {}
    for engine in ENGINES:
        plan = quantized(RESNET, target=engine).plan
        kinds[engine] = {type(slot).__name__ for name, slot in plan.slots.items() if name.endswith("bias")}
    assert kinds == {"fbgemm": {"Float"}, "x86": {"Float"}, "onednn": {"Float"}, "qnnpack": {"Product"}}


def test_another_ending_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.pt: files for x86 end in '\.safetensors'"):
        exactq.export(quantized(RESNET, target="x86"), "model.pt")
