"""One small run, its facts, its page, and what happens to a folder that is damaged or hostile."""

from __future__ import annotations

import copy
import hashlib
import html
import json
import math
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exactq import runs
from exactq.errors import ModelError
from exactq.explanation import explain_biases, explain_layers
from exactq.quantized import Quantized, load
from exactq.reports import HTML, JSON, NODES, activation_histograms, explained_integers, page, report, write
from exactq.reports.facts import FACTS
from exactq.reports.integers import TERMS
from exactq.reports.model_explorer import nodes_of
from exactq.runs.explanation import explain_run
from exactq.traces import trace

Json = dict[str, Any]
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}</style></title>&lt;"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    runs.run("simplecnn", data="digits", target="onnxruntime@avx512vnni", random_weights=True, calibration=64, out=str(out))
    return out


@pytest.fixture
def folder(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def facts(run: Path) -> Json:
    return report(run)


def rewrite(folder: Path, name: str, change: Callable[[Json], object]) -> None:
    """Change a JSON file of a run folder, and the manifest's hash with it."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    rehash(folder)


def rehash(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in manifest["sha256"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


# Facts


def test_facts_are_those_of_the_run(run: Path, facts: Json) -> None:
    metrics, verify = (json.loads((run / name).read_text()) for name in ("metrics.json", "verify.json"))
    assert facts["verdict"] == metrics["verdict"] == "untrained"
    assert facts["metric"]["values"] == {k: metrics["metric"][k] for k in ("float", "ptq", "qat", "deployed")}
    assert facts["coverage"] == 1.0
    assert facts["size"]["artifact_bytes"] == (run / "model.onnx").stat().st_size
    assert facts["latency"] == metrics["latency"]
    assert facts["verify"]["elements"] == verify["elements"]
    assert {layer["name"]: layer["sqnr_db"] for layer in facts["layers"]} == {
        r["name"]: r["sqnr_db"] for r in metrics["layers"]
    }
    assert [line["value"] for line in facts["plan"]] == list(load(run).plan.slots)
    assert all(line["reason"] for line in facts["plan"])


def test_layers_are_what_the_runtime_does_in_one_go(facts: Json) -> None:
    layers = facts["layers"]
    assert [layer["name"] for layer in layers] == ["x", "relu1", "pool1", "relu2", "pool2", "reshape", "relu3", "fc2"]
    assert [layer["reads"] for layer in layers] == [[], [0], [1], [2], [3], [4], [5], [6]]
    assert [layer["kind"] for layer in layers] == ["input"] + ["integer"] * 7
    assert [layer["output"] for layer in layers] == [False] * 7 + [True]
    assert layers[1]["values"] == ["conv1", "relu1"]
    # 16 channels of 8×8 pixels, each the sum of 1×3×3 products
    assert layers[1]["macs"] == 16 * 8 * 8 * 9
    assert math.isclose(sum(layer["share"] for layer in layers), 1)
    assert all(layer["compared"]["mismatches"] == 0 for layer in layers)


def test_each_layer_that_multiplies_has_an_integer_in_full_and_its_biases(run: Path, facts: Json) -> None:
    made, explained = load(run), facts["integers"]
    assert [found["node"] for found in explained] == ["relu1", "relu2", "relu3", "fc2"]
    for found in explained:
        again = explain_run(run, found["node"], found["index"], terms=TERMS)
        assert (found["text"], found["code"], found["error_lsb"]) == (str(again), again.code, again.error_lsb)
    layers = explain_biases(made).layers
    assert [b["node"] for b in facts["biases"]] == [layer.node for layer in layers] == ["conv1", "conv2", "fc1", "fc2"]
    for fact, layer in zip(facts["biases"], layers, strict=True):
        assert (fact["held"], fact["code"], fact["headroom_bits"]) == ("int32", layer.worst.code, layer.tightest.headroom)
    text = html.unescape(page(facts))
    assert all(found["text"] in text for found in explained)


def test_of_many_layers_those_far_from_float_are_explained(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exactq.reports.integers.MOST", 2)
    made, x = load(run), torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    every = sorted((abs(found.error_lsb or 0), found.made) for found in explain_layers(made, (x,)))
    assert {found.node for found in explained_integers(made, (x,))} == {name for _, name in every[-2:]}


def test_weight_error_is_that_of_nearest_codes_a_channel(run: Path, facts: Json) -> None:
    real = load(run).float_graph.constants["conv2.weight"].double().numpy()
    rows = real.reshape(len(real), -1)
    scale = np.abs(rows).max(1, keepdims=True) / 127
    noise = ((rows - np.round(rows / scale) * scale) ** 2).sum(1)
    weight = next(layer["weight"] for layer in facts["layers"] if layer["name"] == "relu2")
    assert math.isclose(weight["sqnr_db"], 10 * math.log10((rows**2).sum() / noise.sum()), abs_tol=0.01)
    channels = 10 * np.log10((rows**2).sum(1) / noise)
    assert weight["weakest"]["index"] == int(channels.argmin())
    assert weight["grid"]["scales"] == len(real) == 32
    assert sum(weight["histogram"]["counts"]) == real.size
    assert weight["used"] == len(np.unique(np.round(rows / scale)))


def test_pairs_that_an_avx2_machine_overflows_are_counted_and_the_remedy_named(run: Path, facts: Json) -> None:
    codes = load(run).graph.constants["fc2.weight"]
    grid = load(run).grids["fc2.weight"]
    rows = grid.encode(codes).int().tolist()
    pairs = [(row[k], row[k + 1]) for row in rows for k in range(0, len(row), 2)]
    risky = sum(max(max(a, 0) + max(b, 0), max(-a, 0) + max(-b, 0)) > 128 for a, b in pairs)
    assert facts["layers"][-1]["weight"]["saturating"] == risky > 0
    advice = next(a for a in facts["advice"] if "every machine" in a["title"])
    assert "--recipe portable" in advice["code"]


def test_the_sentence_says_what_a_manager_asks(facts: Json) -> None:
    assert f"each of {facts['verify']['elements']:,} checked integers is as predicted" in facts["sentence"]
    assert facts["commands"][0]["line"].startswith("exactq run simplecnn --data digits --target onnxruntime@avx512vnni")


@pytest.mark.parametrize(
    ("word", "says", "advises"),
    [
        ("ok", "simplecnn is ready for onnxruntime: accuracy ", "Make the integers the same"),
        ("over_budget", "simplecnn loses too much on onnxruntime", "Fine-tune"),
        ("differs", "Do not ship simplecnn yet", "Find where the runtime parts"),
        ("untrained", "The weights of simplecnn are random", "Give it trained weights"),
        ("not_quantized", "Nothing of simplecnn computes in integers", "Try another target"),
    ],
)
def test_every_verdict_has_its_sentence_and_its_advice(folder: Path, word: str, says: str, advises: str) -> None:
    rewrite(folder, "metrics.json", lambda m: m.update(verdict=word))
    found = report(folder)
    assert found["sentence"].startswith(says)
    assert any(a["title"].startswith(advises) for a in found["advice"])
    assert page(found)


def test_weak_layers_are_named_where_accuracy_was_lost(folder: Path) -> None:
    def worsen(metrics: Json) -> None:
        metrics["verdict"] = "ok"
        metrics["metric"]["deployed"] = metrics["metric"]["float"] - 0.01
        for row in metrics["layers"][3:]:
            row["sqnr_db"] = 12.0

    rewrite(folder, "metrics.json", worsen)
    (found,) = [a for a in report(folder)["advice"] if "weakest" in a["title"]]
    assert "relu2 (12.0 dB)" in found["why"]
    assert 'name: "conv2"' in found["code"]


def test_activations_and_training_are_shown_where_the_run_stored_them(run: Path, folder: Path) -> None:
    quantized = load(run)
    x = quantized.float_graph.inputs[0]
    batches = [(np_batch(x.shape, seed),) for seed in range(2)]
    found = activation_histograms(quantized, batches)
    assert set(found) == {layer["name"] for layer in report(run)["layers"]}
    assert all(sum(h.counts) + h.below + h.above == 2 * size(quantized, name) for name, h in found.items())

    def add(metrics: Json) -> None:
        metrics["activations"] = {name: asdict(h) for name, h in found.items()}
        metrics["metric"]["qat"] = 0.9
        metrics["ptq_layers"] = [{"name": "relu1", "sqnr_db": 30.0}]

    rewrite(folder, "metrics.json", add)
    facts = report(folder)
    assert facts["layers"][1]["activation"]["counts"] == list(found["relu1"].counts)
    assert facts["layers"][1]["before_training_db"] == 30.0
    text = page(facts)
    assert "after training" in text
    assert "before training" in text
    assert "clipped" in text


def np_batch(shape: tuple[int, ...], seed: int) -> Any:
    import torch

    return torch.from_numpy(np.random.default_rng(seed).random((1, *shape[1:]), dtype=np.float32))


def size(quantized: Quantized, name: str) -> int:
    from exactq.graphs.programs import program

    x = np_batch(quantized.float_graph.inputs[0].shape, 0)
    return (trace(program(quantized.float_graph), (x,)) | {"x": x})[name].numel()


def test_a_folder_that_was_only_quantized_has_no_verdict_yet(tmp_path: Path) -> None:
    runs.quantize("simplecnn", data="digits", random_weights=True, calibration=16, out=str(tmp_path / "q"))
    facts = write(tmp_path / "q")
    assert facts["verdict"] == "unmeasured"
    assert facts["metric"] is facts["latency"] is facts["verify"] is None
    assert "nothing was measured yet" in facts["sentence"]
    assert "Not measured" in (tmp_path / "q" / HTML).read_text()


# Page


class Structure(HTMLParser):
    """The tags of a page with the names of their attributes, and what could load or run something."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str]] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.values += [(name, value or "") for name, value in attrs]
        self.scripts += tag == "script"


def structure(text: str) -> Structure:
    found = Structure()
    found.feed(text)
    return found


def test_page_needs_nothing_but_itself(facts: Json) -> None:
    text = page(facts)
    found = structure(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert {name for name, _ in found.values} & {"src", "srcset", "action", "formaction", "onclick", "onload"} == set()
    assert all(value.startswith("#") or value == "data:," for name, value in found.values if name == "href")
    assert found.scripts == 1
    assert "default-src 'none'" in text
    ids = [value for name, value in found.values if name == "id"]
    assert len(ids) == len(set(ids))
    assert {v[1:] for n, v in found.values if n == "href" and v.startswith("#")} <= set(ids)


def test_page_shows_every_name_reason_and_count(facts: Json) -> None:
    text = re.sub(r"</?code>", "", page(facts))
    for line in facts["plan"]:
        assert line["value"] in text
        assert line["reason"].replace("`", "").replace("'", "&#39;") in text
    assert f"{facts['verify']['elements']:,}" in text
    assert text.count('class="box ') == len(facts["layers"])


def test_a_command_wraps_between_its_words_and_is_copied_as_it_is(facts: Json) -> None:
    line = facts["commands"][0]["line"]
    (code,) = (
        code for code in re.findall("<code>(.*?)</code>", page(facts)) if html.unescape(re.sub("</?span>", "", code)) == line
    )
    assert re.findall("<span>(.*?)</span>", code) == [html.escape(word) for word in line.split(" ")]


def hostile(content: Any, text: str, key: str = "") -> Any:
    """The same facts with every free text replaced."""
    if isinstance(content, str):
        return content if key in ("verdict", "kind", "held") else text
    if isinstance(content, list):
        return [hostile(item, text, key) for item in content]
    if isinstance(content, dict):
        free = key in ("versions", "operators")
        return {f"{text}{i}" if free else k: hostile(v, text, k) for i, (k, v) in enumerate(content.items())}
    return content


@pytest.mark.parametrize("text", [HOSTILE, "javascript:alert(1)", "`<b>` & `'\"`", "{% raw %}", "\u202e\x00<svg onload=x>"])
def test_no_text_of_a_stranger_becomes_markup(facts: Json, text: str) -> None:
    mild = "`a` & `b`" if "`" in text else re.sub("[^ ]+", "mild", text)  # as many words: commands wrap between them
    clean, dirty = (structure(page(hostile(facts, t))) for t in (mild, text))
    assert dirty.tags == clean.tags
    free = ("aria-label", "content")
    assert [v for v in dirty.values if v[0] not in free] == [v for v in clean.values if v[0] not in free]


def test_hostile_manifest_plan_and_notes_are_escaped(run: Path, folder: Path) -> None:
    quantized = load(run)
    slots = {name: replace(slot, reason=HOSTILE) for name, slot in quantized.plan.slots.items()}
    Quantized(quantized.float_graph, quantized.graph, replace(quantized.plan, slots=slots)).save(folder)
    rewrite(folder, "metrics.json", lambda m: m.update(notes=[HOSTILE]))
    rewrite(folder, "manifest.json", lambda m: m.update(model=HOSTILE, data=HOSTILE, versions={HOSTILE: HOSTILE}))
    write(folder)
    text = (folder / HTML).read_text()
    assert "<script>alert" not in text
    assert "<img" not in text
    assert text.count("<script>") == 1
    assert "{{7*7}}" in text


def test_the_same_folder_gives_the_same_bytes_and_the_json_gives_the_page(folder: Path) -> None:
    first = [(write(folder), (folder / HTML).read_bytes(), (folder / JSON).read_bytes(), (folder / NODES).read_bytes())]
    second = [(write(folder), (folder / HTML).read_bytes(), (folder / JSON).read_bytes(), (folder / NODES).read_bytes())]
    assert first == second
    assert page(json.loads((folder / JSON).read_text())) == (folder / HTML).read_text()
    assert str(folder) not in (folder / JSON).read_text().replace(
        json.loads((folder / "manifest.json").read_text())["model"], ""
    )
    assert len((folder / HTML).read_bytes()) < 100_000
    assert len((folder / JSON).read_bytes()) < 50_000


def test_two_hundred_layers_stay_below_a_megabyte_and_open_quickly(facts: Json) -> None:
    large = copy.deepcopy(facts)
    chain = [copy.deepcopy(facts["layers"][1 + i % 7]) for i in range(200)]
    for i, layer in enumerate(chain):
        layer["name"], layer["reads"] = f"layer{i}.block.conv", [i - 1] if i % 4 or i < 5 else [i - 1, i - 4]
        layer["activation"] = facts["layers"][1]["weight"]["histogram"]
    chain[0]["reads"] = []
    large["layers"] = chain
    start = time.perf_counter()
    assert len(page(large).encode()) < 1_000_000
    assert time.perf_counter() - start < 5


def test_json_has_a_schema_and_other_data_is_refused(facts: Json) -> None:
    schema = FACTS.json_schema()
    assert set(schema["required"]) == set(facts)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    with pytest.raises(ModelError, match="no facts of a report: verdict"):
        page(facts | {"verdict": "fine"})
    with pytest.raises(ModelError, match="no facts of a report: model: Field required"):
        page({k: v for k, v in facts.items() if k != "model"})
    with pytest.raises(ModelError, match="coverage"):
        page(facts | {"coverage": math.nan})


# Model Explorer


def test_node_data_speaks_of_nodes_that_the_file_has(run: Path, folder: Path, facts: Json) -> None:
    write(folder)
    data = json.loads((folder / NODES).read_text())
    names = nodes_of((run / "model.onnx").read_bytes(), ".onnx", FACTS.validate_python(facts))
    assert set(data) == {"results", "thresholds"}
    assert set(data["results"]) <= set(names)
    by_name = {layer["name"]: layer["sqnr_db"] for layer in facts["layers"]}
    assert data["results"]["conv1"] == {"value": round(by_name["relu1"], 2)}
    assert data["results"]["fc2/codes"] == data["results"]["fc2/float"] == {"value": round(by_name["fc2"], 2)}
    bounds = [t["value"] for t in data["thresholds"]]
    assert bounds == sorted(bounds)
    assert all(re.fullmatch("#[0-9a-f]{6}", t["bgColor"]) for t in data["thresholds"])


# Folders that are none


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no run folder .*make one with `exactq run`"):
        report(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no run folder, or one of a run that did not end: it has no manifest\.json"):
        report(tmp_path)


@pytest.mark.parametrize("name", ["graph.safetensors", "float.json", "plan.yaml", "metrics.json", "model.onnx"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"not whole: .*{re.escape(name)} cannot be read"):
        report(folder)


@pytest.mark.parametrize("name", ["graph.safetensors", "plan.yaml", "metrics.json", "model.onnx"])
def test_a_changed_file_is_named(folder: Path, name: str) -> None:
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ModelError, match=rf"{re.escape(name)} is not the file that the run wrote"):
        report(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("metrics.json", lambda m: m.update(coverage="all"), "metrics.json is damaged: coverage: .*number"),
        ("metrics.json", lambda m: m.update(verdict="<b>"), "metrics.json is damaged: verdict"),
        ("metrics.json", lambda m: m.update(sqnr_db=math.nan), "metrics.json is damaged"),
        ("metrics.json", lambda m: m["metric"].update(float="much"), "metric's float is the text 'much'"),
        ("metrics.json", lambda m: m["metric"].pop("name"), "the metric has no name"),
        ("metrics.json", lambda m: m.pop("layers"), "layers: Field required"),
        ("verify.json", lambda v: v.update(elements=-1), "verify.json is damaged: elements"),
        ("manifest.json", lambda m: m["sha256"].pop("verify.json"), "not whole: it has metrics.json alone"),
        ("manifest.json", lambda m: m["sha256"].pop("model.onnx"), "does not list model.onnx"),
        ("manifest.json", lambda m: m.pop("seed"), "manifest.json is damaged: seed: Field required"),
    ],
)
def test_a_damaged_file_is_named_with_its_field(
    folder: Path, name: str, change: Callable[[Json], object], message: str
) -> None:
    rewrite(folder, name, change)
    with pytest.raises(ModelError, match=message):
        report(folder)


def test_a_manifest_cannot_name_a_file_elsewhere(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["../secret"] = "0"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="which is no file of the folder"):
        report(folder)


def test_a_file_that_is_no_json_is_named(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match=r"manifest\.json is damaged: Invalid JSON"):
        report(folder)
