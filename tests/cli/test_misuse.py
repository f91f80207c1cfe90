"""Bad input: one line that names the thing, the value, what is allowed and what to do; exit code 2, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from exactq import runs
from exactq.models.catalog import MODELS, build
from exactq.runs.workplace import KEPT

from .conftest import Answer, Shell, files_below, write_npz

RUN = "run simplecnn --yes --out out"
MINE = "run mine.py:classifier --yes --out out"

REFUSED = [
    # names
    ("run simplecn", "unknown model 'simplecn' did you mean 'simplecnn'"),
    ("run ''", "unknown model ''"),
    ("run no/such.py:net --data digits", "no/such.py there is no file"),
    ("run mine.py:clasifier --data mine.py:images", "clasifier did you mean 'classifier'"),
    ("run mine.py --data digits", "mine.py names no function"),
    ("run model.onnx", "model.onnx there is no file"),
    (f"{RUN} --target onnxruntim", "unknown target 'onnxruntim' did you mean 'onnxruntime'"),
    (f"{RUN} --target onnxruntime@avx", "unknown instruction set of onnxruntime 'avx' avx2 avx512vnni"),
    (f"{RUN} --data digit", "unknown data 'digit' did you mean 'digits'"),
    (f"{RUN} --data npz:", "npz:FILE"),
    (f"{RUN} --recipe w8a9", "unknown recipe 'w8a9' did you mean 'w8a8'"),
    (f"{RUN} --recipe no.yaml", "no.yaml does not exist"),
    (f"{RUN} --recipe latin.yaml", "latin.yaml cannot be read"),
    (f"{RUN} --recipe broken.yaml", "broken.yaml YAML"),
    (f"{RUN} --metric acuracy", "unknown metric 'acuracy' did you mean 'accuracy'"),
    (f"{RUN} --wieghts x", "no such option --wieghts did you mean --weights"),
    ("runn simplecnn", "runn Did you mean 'run'?"),
    ("run", "MODEL exactq run --help"),
    ("export run", "--out exactq export --help"),
    # numbers
    (f"{RUN} --seed x", "--seed 'x' whole number"),
    (f"{RUN} --seed 1e999", "--seed '1e999' whole number"),
    (f"{RUN} --seed -1", "--seed -1 0 4294967295"),
    (f"{RUN} --seed {10**30}", f"--seed {10**30} 4294967295"),
    (f"{RUN} --calibration 0", "--calibration 0 at least one sample"),
    (f"{RUN} --calibration -5", "--calibration -5 at least one sample"),
    (f"{RUN} --calibration many", "--calibration 'many' whole number"),
    (f"{RUN} --max-drop -0.1", "--max-drop -0.1 from 0 up"),
    (f"{RUN} --max-drop nan", "--max-drop nan from 0 up"),
    (f"{RUN} --max-drop five", "--max-drop 'five' number"),
    (f"{RUN} --max-error inf", "--max-error inf from 0 up"),
    (f"{RUN} --max-error -1", "--max-error -1.0 from 0 up"),
    ("verify run --inputs 0", "--inputs 0 at least one input"),
    ("verify run --inputs some", "--inputs 'some' whole number"),
    ("verify run --seed -1", "--seed -1"),
    ("bench run --batch 0", "--batch 0 1 sample or more"),
    ("bench run --batch 1,two", "--batch 'two' whole number"),
    ("bench run --batch 1,", "--batch '' whole number"),
    ("bench run --threads 0", "--threads 0 this machine can run 1 to"),
    ("bench run --threads 99999", "--threads 99999 this machine can run 1 to"),
    ("bench run --seconds 0", "--seconds 0.0 above 0"),
    ("bench run --seconds soon", "--seconds 'soon' number"),
    ("bench run --seed -1", "--seed -1"),
    (f"{RUN} --random-weights --input-shape 1,0,8,8", "1,0,8,8 sizes ≥ 1"),
    (f"{RUN} --random-weights --input-shape 1,1,2,2", "simplecnn 4×4 2×2"),
    (f"{MINE} --random-weights --input-shape x", "'x' input shape"),
    (f"{RUN} --input-shape 1,3,9,9", "1,3,9,9 digits 1,1,8,8"),
    # combinations
    (f"{RUN} --weights good.safetensors --random-weights", "--weights --random-weights exclude each other"),
    (f"{RUN} --recipe w8a8 --plan plan.yaml", "--recipe --plan exclude each other"),
    (f"{RUN} --plan plan.yaml --target onnxruntime@avx2", "plan.yaml onnxruntime@avx512vnni --target onnxruntime@avx2"),
    (MINE, "mine.py:classifier needs data --data"),
    (f"{MINE} --random-weights", "mine.py:classifier --input-shape"),
    # plans
    (f"{RUN} --plan no.yaml", "no.yaml cannot be read"),
    (f"{RUN} --plan latin.yaml", "latin.yaml cannot be read"),
    (f"{RUN} --plan broken.yaml", "broken.yaml YAML"),
    (f"{RUN} --plan half.yaml", "half.yaml"),
    (f"{RUN} --plan stranger.yaml", "unknown value in the plan 'layer9' Known conv1.weight"),
    ("plan simplecnn --out plan.yaml", "plan.yaml is there already --force"),
    ("plan simplecnn --out no/plan.yaml", "no/plan.yaml there is no folder no"),
    ("plan simplecnn --out folder", "folder is a folder name a file"),
    # weights
    (f"{RUN} --weights no.safetensors", "there is no weights file no.safetensors"),
    (f"{RUN} --weights half.safetensors", "half.safetensors damaged or incomplete"),
    (f"{RUN} --weights empty.safetensors", "empty.safetensors damaged or incomplete"),
    (f"{RUN} --weights half.pt", "half.pt damaged or incomplete"),
    (f"{RUN} --weights nan.safetensors", "nan.safetensors conv1.weight NaN channel 1 finite"),
    (f"{RUN} --weights shape.safetensors", "shape.safetensors conv1.weight shape"),
    (f"{RUN} --weights other.safetensors", "other.safetensors missing conv1.weight"),
    (f"{RUN} --weights evil.pt", "evil.pt carries code nothing was run"),
    (f"{RUN} --weights evil.pt2", "evil.pt2 --trust nothing was run"),
    ("run mine.py:infinite --data mine.py:images", "1.weight an infinity channel 1"),
    ("run mine.py:broken --data mine.py:images", "mine.py:broken mine.py: RuntimeError boom"),
    # data
    (f"{RUN} --data npz:no.npz", "no.npz there is no file"),
    (f"{RUN} --data npz:half.npz", "half.npz cannot be read"),
    (f"{RUN} --data npz:latin.yaml", "latin.yaml"),
    (f"{RUN} --data npz:evil.npz", "evil.npz pickled objects refused"),
    (f"{MINE} --data npz:nan.npz", "nan.npz NaN finite values"),
    (f"{MINE} --data mine.py:nans", "mine.py:nans NaN finite values"),
    (f"{MINE} --data mine.py:infs", "mine.py:infs inf finite values"),
    (f"{MINE} --data mine.py:nothing", "no batch at least"),
    (f"{MINE} --data mine.py:constant", "every calibration value 1 constant real inputs"),
    (f"{MINE} --data mine.py:flat", "mine.py:classifier does not take mine.py:flat gives 1,8,8 float32 RuntimeError:"),
    (f"{MINE} --data mine.py:pairs", "mine.py:classifier does not take 1,3,8,8;1,5 TypeError:"),
    (f"{MINE} --data mine.py:bytes_", "mine.py:bytes_ batch 0, input 0 uint8 float32 int64, convert"),
    (f"{MINE} --data digits", "mine.py:classifier does not take digits gives, 1,1,8,8 (float32, batch first):"),
    (f"{MINE} --data npz:nowhere/", "npz:FILE"),
    (f"{MINE} --data npz:folder", "there is no file folder npz:FILE"),
    (f"{MINE} --data npz:labels.npz", "labels.npz NaN"),
    (f"{RUN} --data imagefolder:no", "there is no folder no"),
    (f"{RUN} --data imagefolder:folder", "folder has no folder in it"),
    (f"{RUN} --data imagefolder:plan.yaml", "there is no folder plan.yaml"),
    (f"{RUN} --data imagefolder:bare", "bare/cat has no image"),
    (f"{RUN} --data imagefolder:bad", "no image of the class 'cat' can be decoded: cat/1.png (no image)"),
    (f"{RUN} --data cifar10:folder", "cifar10 is not in folder"),
    # labels and classes
    ("run mine.py:five --data digits --yes --out out", "digits has 10 classes model scores 5: data --metric cosine, file.py:"),
    (
        f"{RUN} --weights good.safetensors --data imagefolder:two",
        "imagefolder:two has 2 classes model scores 10: --metric cosine,",
    ),
    (f"{MINE} --data mine.py:far", "label 7 no class of a model with 3 scores: 0..2"),
    (f"{MINE} --data mine.py:bare --metric accuracy", "accuracy needs labels, has none: --metric cosine,"),
    (f"{MINE} --data mine.py:reals --metric accuracy", "accuracy whole labels float32 (2,): --metric cosine,"),
    ("run mine.py:regressor --data mine.py:images --yes --out out", "accuracy needs scores not (2,) --metric cosine,"),
    (f"{MINE} --data npz:empty.npz", "empty.npz"),
    ("verify run --data mine.py:images", "mine.py:images 3, 8, 8 1, 8, 8"),
    ("verify run --data npz:no.npz", "no.npz there is no file"),
    ("bench run --data mine.py:images", "input `x` (1, 3, 8, 8) 1, 8, 8"),
    ("bench run --data npz:no.npz", "no.npz there is no file"),
    ("bench run --data digits --batch 1,4000", "4000 is asked for samples smaller --batch"),
    # places
    ("bench no", "there is no run folder no exactq run"),
    ("bench folder", "folder plan.yaml"),
    ("verify no", "there is no run folder no exactq run"),
    ("verify folder", "folder plan.yaml"),
    ("verify plan.yaml", "plan.yaml is no quantized model that exactq reads (it reads .safetensors)"),
    ("export no --out a.onnx", "there is no run folder no"),
    ("export run --out a.tflite", "a.tflite .onnx"),
    ("export run --out no/a.onnx", "no/a.onnx there is no folder no"),
    ("export run --out folder", "folder is a folder name a file"),
    ("run simplecnn --yes --out plan.yaml", "plan.yaml is a file --out needs a folder"),
    ("run simplecnn --yes --out folder", "folder holds files no run of exactq"),
    ("run simplecnn --yes --out app", "app holds files no run of exactq"),
    ("run simplecnn --yes --out link", "link is a link"),
    ("run simplecnn --yes --out .", "--out . this folder choose one below"),
    ("run simplecnn --yes --out ..", "--out .. choose one below"),
    ("run simplecnn --yes --out plan.yaml/sub", "cannot write to plan.yaml choose another folder"),
    (f"run simplecnn --yes --out {'x' * 300}", "File name too long"),
]


class Evil:
    """What unpickling turns into a call that leaves a trace."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("EVIL",)


@pytest.fixture
def world(shell: Shell, run_folder: Path, tmp_path: Path) -> Path:
    """A folder with everything that is wrong, beside a run that is right."""
    good = {name: tensor.clone() for name, tensor in build(MODELS["simplecnn"]).state_dict().items()}
    save_file(good, "good.safetensors")
    save_file(good | {"conv1.weight": good["conv1.weight"].index_fill(0, torch.tensor(1), torch.nan)}, "nan.safetensors")
    save_file(good | {"conv1.weight": torch.zeros(2, 2)}, "shape.safetensors")
    save_file({"some.weight": torch.zeros(2)}, "other.safetensors")
    torch.save(good, "half.pt")
    for name in ("half.pt", "good.safetensors"):
        data = Path(name).read_bytes()
        Path(name.replace("good", "half")).write_bytes(data[: len(data) // 2])
    Path("empty.safetensors").write_bytes(b"")
    for name in ("evil.pt", "evil.pt2"):
        Path(name).write_bytes(pickle.dumps(Evil()))
    write_npz(Path("half.npz"), x=np.zeros((9, 3, 8, 8), np.float32))
    Path("half.npz").write_bytes(Path("half.npz").read_bytes()[:500])
    write_npz(Path("evil.npz"), x=np.array([Evil()], dtype=object))
    write_npz(Path("nan.npz"), x=np.full((9, 3, 8, 8), np.nan, np.float32))
    write_npz(Path("labels.npz"), x=np.zeros((2, 3, 8, 8), np.float32), labels=np.array([0, np.nan]))
    Path("bare/cat").mkdir(parents=True)
    for name in ("bad/cat/1.png", "two/a/1.png", "two/b/1.png"):
        Path(name).parent.mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(name)
    Path("bad/cat/1.png").write_bytes(b"no image")
    write_npz(Path("empty.npz"), x=np.zeros((0, 3, 8, 8), np.float32))
    plan = (run_folder / "plan.yaml").read_text().replace("avx2", "avx512vnni")
    Path("plan.yaml").write_text(plan)
    Path("half.yaml").write_text(plan[: len(plan) // 2])
    Path("stranger.yaml").write_text(plan + "  layer9: {float: 'no such layer'}\n")
    Path("broken.yaml").write_text("a: [b: }\n")
    Path("latin.yaml").write_bytes("größe: 1\n".encode("latin-1"))
    for name, text in (("folder", "mine"), ("app", '{"name": "an app"}')):
        Path(name).mkdir()
        Path(name, "manifest.json" if name == "app" else "mine.txt").write_text(text)
    Path("link").symlink_to("run")
    return tmp_path


def refused(answer: Answer, words: str) -> None:
    """One line on stderr that has the words, nothing on stdout, exit code 2."""
    assert answer.code == 2, answer.err
    assert answer.out == ""
    assert "Traceback" not in answer.err
    assert answer.said.startswith("exactq: ")
    assert [word for word in words.split() if word not in answer.said] == [], answer.said


@pytest.mark.parametrize(("line", "words"), REFUSED, ids=lambda text: text[:60])
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(shell: Shell, world: Path, line: str, words: str) -> None:
    before = files_below(world)
    refused(shell(*shlex.split(line)), words)
    assert files_below(world) == before
    assert not (world / "EVIL").exists()
    assert sorted(p.name for p in world.iterdir() if p.name.startswith(".") or p.name in ("out", "runs")) == []


@pytest.mark.parametrize("metric", ["cosine", "mine.py:distinct"])
def test_data_of_other_classes_is_taken_where_the_metric_reads_no_labels(shell: Shell, metric: str) -> None:
    answer = shell("run", "mine.py:five", "--data", "digits", "--metric", metric, "--yes", "--out", "out", "--max-drop", "9999")
    assert answer.code == 0, answer.err


def test_a_metric_that_does_not_fit_is_told_before_anything_slow(shell: Shell) -> None:
    answer = shell("run", "mine.py:classifier", "--data", "mine.py:far", "--yes")
    refused(answer, "label 7 no class")
    assert not [line for line in answer.err.splitlines() if line.startswith(("plan", "calibrate"))]


def test_a_damaged_image_is_left_out_and_the_run_and_its_report_say_so(shell: Shell, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for label in range(2):
        (tmp_path / "pets" / str(label)).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(90 * label, 90 * label + 90, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / str(label) / f"{number}.png")
    for name in ("0/3.png", "0/4.png", "1/19.png", "1/7.png"):
        (tmp_path / "pets" / name).write_bytes((tmp_path / "pets" / name).read_bytes()[:200])
    (tmp_path / "pets" / "1" / "8.png").write_bytes(b"")
    answer = shell(
        "run", "simplecnn", "--data", "imagefolder:pets", "--input-shape", "1,3,8,8", "--yes", "--out", "out", "--json"
    )
    assert answer.code == 0, answer.err
    facts = json.loads(answer.out)
    (note,) = [note for note in facts["notes"] if "left out" in note]
    assert note.startswith("5 of 40 images could not be decoded and were left out: 0/3.png (")
    assert note.endswith(" and 2 more")
    assert "5 of 40 images could not be decoded" in (tmp_path / "out" / "report.html").read_text()
    asked = ("quantize", "simplecnn", "--data", "imagefolder:pets", "--input-shape", "1,3,8,8")
    assert "could not be decoded and were left out: 0/" in shell(*asked).err
    assert "note       3 of 9 images could not be decoded" in shell("verify", "out").err


PARTS = ("plan.yaml", "float.json", "float.safetensors", "graph.json", "graph.safetensors", "model.onnx", "manifest.json")
DAMAGE = {
    "missing": None,
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(range(256)) * 3,
    "pickle": lambda data: pickle.dumps(Evil()),
    "not text": lambda data: b"\xff\xfe" + data,
    "a list": lambda data: b"[1, 2]",
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("part", PARTS)
def test_a_run_folder_with_a_damaged_part_is_refused(shell: Shell, run_folder: Path, part: str, how: str) -> None:
    change, path = DAMAGE[how], run_folder / part
    data = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(data))
    answer = shell("verify", "run", "--inputs", "1")
    assert (answer.code, answer.out) == (2, ""), answer
    assert answer.said.startswith("exactq: ")
    assert not Path("EVIL").exists()
    if part not in ("model.onnx", "manifest.json"):
        assert shell("export", "run", "--out", "a.onnx").code == 2
        assert not Path("a.onnx").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"artifact": "../outside.onnx"}, "artifact"),
        ({"artifact": "/etc/passwd"}, "artifact"),
        ({"artifact": "float.json/../model.onnx"}, "artifact"),
        ({"artifact": None}, "artifact"),
        ({"sha256": {"../../outside": "0", "model.onnx": "0"}}, "outside of the folder"),
        ({"sha256": ["model.onnx"]}, "sha256"),
        ({"data": "mine.py:images"}, "mine.py:images not executed unasked --data"),
        ({"data": "../mine.py:images"}, "not executed unasked"),
        ({"data": "npz:../../etc/passwd"}, "there is no file"),
        ({"data": 7}, "data"),
        ({"data": "noise:1,9"}, "1, 8, 8"),
    ],
    ids=str,
)
def test_a_manifest_is_data_and_cannot_lead_out_of_its_folder(
    shell: Shell, run_folder: Path, change: dict[str, object], words: str
) -> None:
    path = run_folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    Path("mine.py").write_text("import os\nos.mkdir('EVIL')\n")
    refused(shell("verify", "run", "--inputs", "1"), words)
    assert not Path("EVIL").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("place", ["out", "run", "new/out"])
def test_a_disk_that_is_full_or_closed_leaves_all_as_it_was(
    shell: Shell, run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, place: str
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    before = files_below(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse)
    refused(shell("run", "simplecnn", "--yes", "--out", place), os.strerror(number))
    refused(shell("plan", "simplecnn", "--out", "new.yaml"), os.strerror(number))
    refused(shell("export", "run", "--out", "new.onnx"), os.strerror(number))
    assert files_below(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("step", ["away", "into place"])
def test_an_earlier_run_stands_when_the_new_one_cannot_take_its_place(
    shell: Shell, run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    before, real, failed = files_below(tmp_path), os.rename, []

    def rename(old: object, new: object) -> None:
        if Path(str(old if step == "away" else new)).name == "run" and not failed:
            failed.append(old)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(old, new)  # type: ignore[arg-type]

    monkeypatch.setattr("exactq.runs.workplace.os.rename", rename)
    answer = shell("quantize", "simplecnn", "--out", "run")
    assert (answer.code, answer.said.endswith(KEPT)) == (2, True), answer.err
    assert {k: v for k, v in files_below(tmp_path).items() if ".unfinished" not in k} == before
    assert "resumed" in shell("quantize", "simplecnn", "--out", "run").err
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_metric_that_fails_late_costs_nothing_that_was_finished(shell: Shell) -> None:
    line = f"{MINE} --data mine.py:images --metric mine.py:nan".split()
    refused(shell(*line), f"mine.py:nan nan finite {KEPT}")
    answer = shell(*line[:-1], "cosine")
    assert (answer.code, "resumed    quantized" in answer.err) == (0, True), answer.err


def test_a_bug_is_called_one_and_shows_its_traceback_when_asked(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr(runs, "run", fail)
    answer = shell("run", "simplecnn", "--yes")
    assert answer.code == 3
    assert answer.err.startswith("exactq: a bug of exactq, not yours: ZeroDivisionError: division by zero (EXACTQ_TRACEBACK=1 ")
    assert answer.err.count("\n") == 1
    monkeypatch.setenv("EXACTQ_TRACEBACK", "1")
    assert "Traceback" in shell("run", "simplecnn", "--yes").err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_memory_that_is_not_there_is_no_bug(shell: Shell, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(runs, "run", fail)
    refused(shell("run", "simplecnn", "--yes"), "out of memory")


@pytest.mark.parametrize("line", ["run --help", "plan -h", "--help", "targets --json", "--version"])
def test_help_and_lists_are_results(shell: Shell, line: str) -> None:
    answer = shell(*line.split())
    assert (answer.code, answer.err) == (0, "")
    assert answer.out
