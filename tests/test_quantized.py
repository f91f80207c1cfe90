"""The quantized model as a value: saved, loaded, exported; coverage by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.nets import IMAGE, NETS, conv, data, net, quantized
from torch import nn

from exactq.errors import ModelError, UsageError
from exactq.flow import prepare, quantize_graph
from exactq.plans.document import from_yaml
from exactq.quantized import FLOAT, PLAN, QUANTIZED, SEAL, Quantized, load
from exactq.traces import walk

FILES = {PLAN, SEAL, *(f"{g}.{end}" for g in (FLOAT, QUANTIZED) for end in ("json", "safetensors"))}


@pytest.mark.parametrize("name", ["residual", "one layer twice", "a huge bias", "float island", "input is output"])
def test_what_is_saved_comes_back_as_the_same_model(name: str, tmp_path: Path) -> None:
    made = quantized(name)
    assert made.save(tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    assert {p.name for p in (tmp_path / "deep" / "folder").iterdir()} == FILES
    back = load(tmp_path / "deep" / "folder")
    assert (back.plan, back.notes, back.coverage()) == (made.plan, made.notes, made.coverage())
    assert back.artifact() == made.artifact()
    (batch,) = data(NETS[name][1], 1)
    for ours, theirs in zip(walk(made.program(), batch), walk(back.program(), batch), strict=True):
        assert torch.equal(ours, theirs)
    assert {n: g.scale.tolist() for n, g in back.grids.items()} == {n: g.scale.tolist() for n, g in made.grids.items()}


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    first, second = (quantized("residual").save(tmp_path / n) for n in "ab")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}
    assert from_yaml((first / PLAN).read_text()) == quantized("residual").plan


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = quantized("residual").save(tmp_path_factory.mktemp("saved"))
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_named(name: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    written(tmp_path, {k: v for k, v in saved.items() if k != name})
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(tmp_path)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda b: b"",
    "cut": lambda b: b[: len(b) // 2],
    "one bit": lambda b: b[:-40] + bytes([b[-40] ^ 1]) + b[-39:],
    "no text": lambda b: b"\xff\xfe" + b,
    "other": lambda b: b"[]",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", sorted(FILES))
def test_a_damaged_file_is_an_error_of_the_model(name: str, damage: str, saved: dict[str, bytes], tmp_path: Path) -> None:
    written(tmp_path, saved | {name: DAMAGE[damage](saved[name])})
    with pytest.raises(ModelError):
        load(tmp_path)


def test_files_of_two_models_never_pass_for_one(saved: dict[str, bytes], tmp_path: Path) -> None:
    other = quantized("one layer twice").save(tmp_path / "other")
    half = {f"{QUANTIZED}.{end}": (other / f"{QUANTIZED}.{end}").read_bytes() for end in ("json", "safetensors")}
    with pytest.raises(ModelError, match=r"graph\.json is not the file that was written .*: quantize the model anew"):
        load(written(tmp_path, saved | half))


def test_an_edited_plan_is_not_the_plan_of_the_graph_beside_it(saved: dict[str, bytes], tmp_path: Path) -> None:
    written(tmp_path, saved | {PLAN: saved[PLAN].replace(b"minmax", b"entropy")})
    with pytest.raises(ModelError, match=r"plan\.yaml is not the file .*: give an edited plan to `quantize` instead"):
        load(tmp_path)


def test_loading_executes_nothing(saved: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    hostile = b"values: !!python/object/apply:os.system [touch hacked]\n"
    seal = saved[SEAL].replace(hashlib.sha256(saved[PLAN]).hexdigest().encode(), hashlib.sha256(hostile).hexdigest().encode())
    with pytest.raises(ModelError, match="is not YAML: could not determine a constructor"):
        load(written(tmp_path / "run", saved | {PLAN: hostile, SEAL: seal}))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no folder of a quantized model: it has no plan\.yaml"):
        load(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write to"):
        quantized("residual").save(tmp_path / "file")
    with pytest.raises(UsageError, match=r"cannot write .*model\.onnx: No such file or directory; choose another file"):
        quantized("residual").export(tmp_path / "nowhere" / "model.onnx")


def test_a_file_of_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.tflite: files for onnxruntime end in '\.onnx'"):
        quantized("residual").export(tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
    path = quantized("residual").export(tmp_path / "model.onnx")
    assert path.read_bytes() == quantized("residual").artifact()


def test_a_plan_for_an_unknown_target_has_none() -> None:
    made = quantized("residual")
    plan = type(made.plan)("abacus", "avx2", "w8a8", made.plan.slots)
    with pytest.raises(UsageError, match="the plan is for the target 'abacus', which this exactq does not know"):
        _ = Quantized(made.float_graph, made.graph, plan).target


def test_coverage_is_the_share_of_multiply_accumulates_in_integers() -> None:
    def mixed(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.a(x))  # 4·8·8 outputs, 3·9 products each
        return self.fc(self.up(y).flatten(1))  # 4·8·8 inputs, 2·2·2 each; 5 outputs, 2·16·16 each

    layers = {"a": conv(3, 4), "up": nn.ConvTranspose2d(4, 2, 2, stride=2), "fc": nn.Linear(512, 5)}
    made = quantize_graph(prepare(net(mixed, **layers), IMAGE), calibration=data(IMAGE))
    inside, outside = 4 * 8 * 8 * 27 + 5 * 512, 4 * 8 * 8 * 8
    assert made.coverage() == inside / (inside + outside)


def test_coverage_is_none_without_multiply_accumulates() -> None:
    assert quantize_graph(prepare(net(lambda s, x: x + x), IMAGE), calibration=data(IMAGE)).coverage() is None
