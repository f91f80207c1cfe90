"""The Python door: the stages in a row, on one page.

capture -> optimize -> plan -> calibrate -> apply -> emit -> verify
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from exactq.benchmark import SECONDS, Benchmark, Settings
from exactq.benchmark import bench as bench_quantized
from exactq.calibration.collect import calibrate
from exactq.conversion import Foreign, foreign, is_foreign
from exactq.conversion.fakequant import fakes
from exactq.conversion.files import open_file
from exactq.conversion.prepared import is_prepared
from exactq.difference import Diff, Execution, execution, observed, prepared
from exactq.difference import diff as diff_executions
from exactq.errors import DataError, ModelError, UsageError, unknown
from exactq.explanation import Biases, Explanation
from exactq.explanation import explain as explain_element
from exactq.explanation import explain_biases as explain_all_biases
from exactq.graphs.graph import Graph
from exactq.graphs.programs import example_inputs as random_inputs
from exactq.graphs.programs import program
from exactq.optimization.patterns import find_patterns
from exactq.optimization.pipeline import optimize
from exactq.plans import document
from exactq.plans.build import build
from exactq.plans.dynamic import build_dynamic
from exactq.plans.plan import Plan
from exactq.plans.recipes import Recipe, recipe_named
from exactq.quantization.apply import apply
from exactq.quantization.fit import plan_fits
from exactq.quantized import Quantized, load
from exactq.sources import onnxfile
from exactq.sources.capture import capture
from exactq.targets import TARGETS, target_named
from exactq.training.courses import Course
from exactq.training.methods import method_named
from exactq.training.objectives import OBJECTIVES
from exactq.training.samples import Loader
from exactq.training.tuning import Moment, tune
from exactq.verification import Verdict
from exactq.verification import verify as verify_quantized

Batches = Iterable[Sequence[Tensor]]
Counted = Callable[[int], None]

__all__ = [
    "bench",
    "convert",
    "diff",
    "explain",
    "explain_biases",
    "export",
    "load",
    "plan",
    "plan_graph",
    "prepare",
    "quantize",
    "quantize_graph",
    "read",
    "train",
    "verify",
]


def read(path: str | Path, *, shapes: Sequence[tuple[int, ...]] | None = None) -> nn.Module:
    """The float model of an `.onnx` file, under the file's names, in evaluation mode; nothing of the file is executed.

    `shapes`, one an input and without the batch, are needed where the file leaves sizes free. ONNX Runtime computes the file
    beside the model on random inputs. Raises `ModelError` for what cannot be read, and where the two differ.
    """
    made = onnxfile.model(onnxfile.read(Path(path)), shapes)
    check_reading(made, random_inputs(made.graph, batch=2))
    return made


def check_reading(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Nothing, or a `ModelError` where a model is not the file that it was read from; other models have no file."""
    if isinstance(model, onnxfile.OnnxModel):
        onnxfile.check_reading(model, inputs, TARGETS["onnxruntime"].timed)


def prepare(model: nn.Module, example_inputs: Sequence[Tensor]) -> Graph:
    """The model as a graph of simple float operators: captured, normalisation folded, identities removed."""
    return optimize(capture(model, example_inputs)).graph


def plan(
    model: nn.Module, example_inputs: Sequence[Tensor], *, target: str = "onnxruntime", recipe: str | Recipe = "w8a8"
) -> Plan:
    """On which grid every value of `model` will live on `target`, and why; nothing is computed yet."""
    return plan_graph(prepare(model, example_inputs), target=target, recipe=recipe)


def plan_graph(graph: Graph, *, target: str = "onnxruntime", recipe: str | Recipe = "w8a8") -> Plan:
    """The plan for a graph that `prepare` made."""
    chosen, isa = target_named(target)
    wishes = recipe_named(recipe) if isinstance(recipe, str) else recipe
    _refuse_constant_outputs(graph)
    ability = chosen.ability(isa)
    if wishes.dynamic:
        if not ability.dynamic:
            raise UsageError(
                f"{chosen.name} has no layers that quantize their input at run time, which recipe '{wishes.name}' asks for; "
                f"targets that have them: {', '.join(t.name for t in TARGETS.values() if t.ability(t.isas[0]).dynamic)}"
            )
        made = build_dynamic(graph, ability, wishes)
    else:
        made = build(graph, ability, wishes, find_patterns(graph))
    plan_fits(graph, made, ability)
    return made


def _refuse_constant_outputs(graph: Graph) -> None:
    constants = graph.constants
    if fixed := [name for name in graph.outputs if name in constants]:
        raise ModelError(
            f"the model returns its constant `{fixed[0]}`, whatever its inputs are: runtimes take models whose outputs are "
            "computed; leave it out of the model's outputs"
        )


def quantize(
    model: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    calibration: Batches,
    target: str = "onnxruntime",
    recipe: str | Recipe = "w8a8",
    plan: Plan | str | Path | None = None,
    progress: Counted | None = None,
) -> Quantized:
    """`model` on the grids of a plan whose ranges come from `calibration`: batches of inputs, each a tensor or a tuple.

    The plan is made from `recipe` for `target` (`name` or `name@isa`), or given, as a `Plan` or as the path of its YAML file.
    """
    return quantize_graph(
        prepare(model, example_inputs), calibration=calibration, target=target, recipe=recipe, plan=plan, progress=progress
    )


def quantize_graph(
    graph: Graph,
    *,
    calibration: Batches,
    target: str = "onnxruntime",
    recipe: str | Recipe = "w8a8",
    plan: Plan | str | Path | None = None,
    progress: Counted | None = None,
) -> Quantized:
    """As `quantize`, for a graph that `prepare` made."""
    chosen = given_plan(plan) if plan is not None else plan_graph(graph, target=target, recipe=recipe)
    target_of_plan, isa = target_named(f"{chosen.target}@{chosen.isa}")
    _refuse_constant_outputs(graph)
    plan_fits(graph, chosen, target_of_plan.ability(isa))
    states = calibrate(graph, chosen, map(as_tuple, calibration), progress)
    applied = apply(graph, chosen, states)
    return Quantized(graph, applied.graph, chosen, applied.notes)


def given_plan(plan: Plan | str | Path) -> Plan:
    """A plan as it is, or read from its YAML file; raises `UsageError` where that cannot be read."""
    if isinstance(plan, Plan):
        return plan
    try:
        text = Path(plan).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the plan {plan} cannot be read: {error}") from error
    return document.from_yaml(text, str(plan))


def opened(quantized: Quantized | str | Path) -> Quantized:
    """A quantized model as it is, from the folder it was saved in, or from a file of PyTorch's engines that exactq wrote."""
    if isinstance(quantized, Quantized):
        return quantized
    return open_file(Path(quantized)) if Path(quantized).is_file() else load(quantized)


def as_tuple(batch: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A batch as the tuple of the model's inputs."""
    return (batch,) if isinstance(batch, Tensor) else tuple(batch)


def export(quantized: Quantized, path: str | Path) -> Path:
    """Write the target's own file and return its path."""
    return quantized.export(path)


def convert(model: nn.Module, example_inputs: Sequence[Tensor], *, target: str | None = None) -> Quantized:
    """A model that torch.ao prepared or converted, on exactly the grids it has: those that its fake quantization really used.

    `torch.ao.quantization.convert` asks observers instead, and the model jumps. Without a target it is PyTorch's engine,
    `torch.backends.quantized.engine`. Raises `ModelError` for a model that was never calibrated and for parts not read.
    """
    return foreign(model, as_tuple(example_inputs), target=target).quantized


def verify(
    quantized: Quantized | nn.Module | str | Path, batches: Batches, *, inputs: int = 64, target: str | None = None
) -> Verdict:
    """The real runtime beside the emulator on at least `inputs` inputs; takes a `Quantized` or the folder it was saved in.

    It also takes a module that torch.ao converted: then that module's own codes and answers stand beside the emulator of
    `target`, the engine that PyTorch is set to if none is given.
    """
    rows = map(as_tuple, batches)
    if not isinstance(quantized, nn.Module):
        made = opened(quantized)
        return verify_quantized(made, rows, inputs=inputs)
    first = next(rows, None)
    if first is None:
        raise DataError("there is no input to verify with: give at least one batch")
    theirs = _converted(quantized, first, target)
    return verify_quantized(theirs.quantized, chain([first], rows), runtime=theirs.runtime, inputs=inputs)


def _converted(model: nn.Module, example_inputs: Sequence[Tensor], target: str | None) -> Foreign:
    """A module that others converted; `UsageError` for one that is only prepared."""
    theirs = foreign(model, example_inputs, target=target)
    if theirs.kind == "prepared":
        raise UsageError(
            "the model is prepared and has no integers yet: exactq.convert makes them, on the grids of its training"
        )
    return theirs


def bench(
    quantized: Quantized | str | Path,
    data: Batches | None = None,
    *,
    batch: Sequence[int] = (),
    threads: Sequence[int] = (1,),
    seconds: float = SECONDS,
) -> Benchmark:
    """What the quantized file gains over the float file on this machine: time, size, memory, float and quantized in turns.

    `batch` and `threads` are the sizes to measure, each with each, for about `seconds` a case; without `batch` one sample.
    `data` gives batches of inputs, of which the first samples are taken; without it inputs are noise.
    """
    made = opened(quantized)
    settings = Settings(tuple(batch), tuple(threads), seconds)
    return bench_quantized(made, settings, data=None if data is None else map(as_tuple, data))


def explain(
    quantized: Quantized | nn.Module | str | Path,
    node: str,
    at: Sequence[int],
    *,
    inputs: Tensor | Sequence[Tensor] | None = None,
    isa: str | None = None,
) -> Explanation:
    """How the integer of the value `node` at the index `at` comes about on `inputs`, one batch, step by step; print it.

    `at` begins with the sample's number in the batch. Without inputs it is one of normally distributed numbers. A module that
    torch.ao prepared or converted is taken too, with inputs.
    """
    if isinstance(quantized, nn.Module):
        if inputs is None:
            raise UsageError("a module that others quantized is traced on its inputs: give inputs=")
        made = foreign(quantized, as_tuple(inputs)).quantized
    else:
        made = opened(quantized)
    return explain_element(made, node, at, None if inputs is None else as_tuple(inputs), isa=isa)


def explain_biases(quantized: Quantized | str | Path, node: str | None = None, *, isa: str | None = None) -> Biases:
    """How the bias of every layer, or of the layer `node`, is quantized: code, error, and what is left of int32; print it.

    Where the target keeps biases in float, it says so, and what int32 biases would cost.
    """
    made = opened(quantized)
    return explain_all_biases(made, node, isa=isa)


Executed = Execution | Quantized | nn.Module | str | Path | tuple[Quantized | str | Path, str]
"""A model and how it is executed: alone by its emulator, in a pair as the second says, one of `difference.WAYS`."""


def diff(a: Executed, b: Executed, batches: Batches, *, inputs: int = 64) -> Diff:
    """Where two executions of one model part on at least `inputs` inputs, by how much, and why; print it.

    Each is a quantized model or its folder, computed by its emulator; a pair of one with a way to compute it (`"float"`,
    `"qdq"`, `"emulator"`, `"emulator@ISA"` or `"runtime"`); or a module, float or prepared or converted by torch.ao or torchao,
    that runs itself. Raises `DataError` where they are not of one model.
    """
    rows = map(as_tuple, batches)
    first = next(rows, None)
    if first is None:
        raise DataError("there is no input to compare on: give at least one batch")
    return diff_executions(executed(a, first), executed(b, first), chain([first], rows), inputs=inputs)


def executed(given: Executed, example_inputs: Sequence[Tensor]) -> Execution:
    """The execution that is meant; modules are captured with `example_inputs`."""
    if isinstance(given, Execution):
        return given
    if isinstance(given, nn.Module):
        return _module(given, example_inputs)
    model, way = given if isinstance(given, tuple) else (given, "emulator")
    return execution(opened(model), way)


def _module(model: nn.Module, example_inputs: Sequence[Tensor]) -> Execution:
    if not is_foreign(model):
        graph = prepare(model, example_inputs)
        return Execution("float", graph, program(graph))
    trains = any(map(is_prepared, model.modules()))
    if trains and not any(map(fakes, model.modules())):
        raise UsageError(
            "the module only observes ranges and computes in floats: compare the float model that it was, or exactq.convert it"
        )
    theirs = foreign(model, example_inputs, target=GRIDS_OF_TRAINING if trains else None)
    if theirs.kind == "converted":
        return observed(f"{theirs.quantized.target.name}, converted", theirs.quantized, theirs.runtime)
    return prepared("prepared", theirs.quantized, theirs.runtime)


GRIDS_OF_TRAINING = "fbgemm"
"""The target whose plans take every grid that fake quantization can have; a prepared model computes in floats on any."""


def train(
    quantized: Quantized,
    loader: Loader,
    *,
    method: str = "exact",
    objective: str = "distillation",
    progress: Callable[[Moment], None] | None = None,
    state_path: Path | None = None,
    **course: Any,
) -> Quantized:
    """`quantized` fine-tuned through its own rounding: the same plan, names and files.

    `loader` gives batches of inputs, or of (inputs, labels), and is gone through more than once. `method` is a name of
    `training.methods.METHODS`: the runtime's own integers (`exact`), with learned steps (`exact_lsq`), or fake quantization
    (`straight_through`, `lsq`), which is faster. `objective` is a name of `training.objectives.OBJECTIVES`; `course` has the
    fields of `training.courses.Course`, such as `epochs`. With `state_path` a killed training goes on where it was. The best
    epoch on held-out batches comes back.
    """
    if objective not in OBJECTIVES:
        raise unknown("objective", objective, OBJECTIVES)
    known = [f.name for f in fields(Course)]
    for name in course:
        if name not in known:
            raise unknown("field of a training course", name, known)
    goal, settings = OBJECTIVES[objective], Course(**course)
    way = method_named(method, quantized.lower)
    tuned = tune(quantized, loader, course=settings, objective=goal, method=way, progress=progress, state_path=state_path)
    return tuned.quantized
