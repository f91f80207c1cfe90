"""The facts of a run as records: what the page shows and `report.json` holds. A number that does not exist is None."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from exactq.errors import ModelError
from exactq.kernels.anatomy import Held

VERSION: Literal[1] = 1
"""The version of the facts' layout; a field that is renamed or removed raises it, a new one does not."""

Word = Literal["ok", "over_budget", "differs", "untrained", "not_quantized", "unmeasured"]
Count = NonNegativeInt


@dataclass(frozen=True)
class GridFacts:
    """A grid in figures: `scale`, `zero` and `real` are the smallest and the largest over its `scales` scales."""

    format: str
    lo: int
    hi: int
    scales: PositiveInt
    scale: tuple[FiniteFloat, FiniteFloat]
    zero: tuple[int, int]
    real: tuple[FiniteFloat, FiniteFloat]


@dataclass(frozen=True)
class Histogram:
    """How reals fall on the codes of their grid: bin k counts those that round to the `width` codes from first + k·width on.

    `below` and `above` count the reals that the grid has no code for; `least` and `most` are the extremes seen.
    """

    first: int
    width: PositiveInt
    counts: tuple[Count, ...]
    below: Count
    above: Count
    least: FiniteFloat
    most: FiniteFloat


@dataclass(frozen=True)
class Channel:
    """One output channel, and its signal-to-noise ratio in dB."""

    index: Count
    sqnr_db: FiniteFloat


@dataclass(frozen=True)
class WeightFacts:
    """A layer's weight: float values beside the codes of the quantized graph. `sqnr_db` None: nothing was lost, `exact`.

    `used` is how many different codes occur. `saturating` counts the pairs of weights whose products some input overflows in
    16 bits on one of the target's instruction sets; None where none of them adds in 16 bits.
    """

    name: str
    shape: tuple[Count, ...]
    grid: GridFacts
    sqnr_db: FiniteFloat | None
    exact: bool
    weakest: Channel | None
    histogram: Histogram
    used: Count
    saturating: Count | None


@dataclass(frozen=True)
class Compared:
    """A tensor of the real runtime beside the emulator's."""

    name: str
    elements: Count
    mismatches: Count
    max_lsb: Count


@dataclass(frozen=True)
class LayerFacts:
    """What the runtime does in one go, named after the value that leaves it; `values` are all that it computes on the way.

    `kind`: codes by an integer kernel, reals by a float one, or an input. `reads` are positions in the list of layers.
    `sqnr_db` compares with the float model, the drift of all layers before included; None where it was not measured.
    """

    name: str
    values: tuple[str, ...]
    operators: tuple[str, ...]
    kind: Literal["integer", "float", "input"]
    kernel: str | None
    reads: tuple[Count, ...]
    output: bool
    shape: tuple[Count, ...] | None
    slot: str
    reason: str
    grid: GridFacts | None
    macs: Count
    share: FiniteFloat
    sqnr_db: FiniteFloat | None
    before_training_db: FiniteFloat | None
    weight: WeightFacts | None
    activation: Histogram | None
    compared: Compared | None
    unverified: str | None


@dataclass(frozen=True)
class IntegerFacts:
    """One integer of a layer on the first verified sample, the one farthest from the float model's; `text` explains it."""

    node: str
    index: tuple[Count, ...]
    code: int
    real: FiniteFloat
    reference: FiniteFloat | None
    error_lsb: FiniteFloat | None
    text: str


@dataclass(frozen=True)
class BiasFacts:
    """How a layer's biases are held: `int32`, `float32`, or None without any. `channel` is the one that loses most as int32.

    `bias` is its float value, `code` its int32 (of a float32 bias what it would be) and `error_lsb` what rounding costs.
    `headroom_bits` is what no accumulator of the layer uses of int32, `overflow` in how many channels one could leave it, and
    `zero_weights` how many channels no input changes.
    """

    node: str
    held: Held | None
    channels: Count
    channel: Count
    bias: FiniteFloat | None
    code: int | None
    error_lsb: FiniteFloat | None
    headroom_bits: FiniteFloat
    overflow: Count
    zero_weights: Count


@dataclass(frozen=True)
class PlanLine:
    """A line of the plan: the value, its format, granularity and observer, and the reason."""

    value: str
    format: str
    per: str
    observer: str
    reason: str


@dataclass(frozen=True)
class MetricFacts:
    """The metric of the float model, after quantization, after training (None: not trained), and of the deployed file."""

    name: str
    values: dict[Literal["float", "ptq", "qat", "deployed"], FiniteFloat | None]
    max_drop: FiniteFloat | None
    max_error: FiniteFloat | None
    agreement: FiniteFloat | None
    sqnr_db: FiniteFloat | None
    mean_error: FiniteFloat | None


@dataclass(frozen=True)
class EpochFacts:
    """An epoch of the training: the mean loss (None before it began), the score on held-out samples, and the metric on them."""

    epoch: Count
    loss: FiniteFloat | None
    score: FiniteFloat
    metric: FiniteFloat | None


@dataclass(frozen=True)
class TrainingFacts:
    """How the model was fine-tuned, and what it brought; `best` 0 or `helped` False: the model stayed as it was quantized.

    `data` says which samples were trained on, `samples` None is a stream; `failed` is why the training was given up.
    `metric` is that of the fine-tuned model, `float_tuned` that of the float model after the same training; `sentence` says it
    all.
    """

    objective: str
    data: str
    samples: Count | None
    epochs: Count
    batch: Count
    rate: FiniteFloat
    held_out: FiniteFloat
    best: Count
    history: tuple[EpochFacts, ...]
    failed: str | None
    helped: bool
    metric: FiniteFloat | None
    float_tuned: FiniteFloat | None
    sentence: str = ""
    method: str = "straight_through"


@dataclass(frozen=True)
class Size:
    """File sizes in bytes; the float model's is None where it was not measured."""

    float_bytes: Count | None
    artifact_bytes: Count


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of both models, measured in turns, and how many times faster the quantized one is."""

    float_ms: FiniteFloat
    artifact_ms: FiniteFloat
    ratio: FiniteFloat
    rounds: Count
    batch: Count
    threads: Count


@dataclass(frozen=True)
class Verification:
    """What `verify` found."""

    runtime: str
    version: str
    isa: str
    inputs: Count
    elements: Count
    mismatches: Count
    max_lsb: Count
    tensors: tuple[Compared, ...]
    outputs: tuple[Compared, ...]
    unverified: tuple[str, ...]
    operators: dict[str, Count]


@dataclass(frozen=True)
class Advice:
    """Something to try, why, and the command or the file that does it."""

    title: str
    why: str
    code: str | None = None


@dataclass(frozen=True)
class Command:
    """A line for the shell, and what it does."""

    line: str
    does: str


@dataclass(frozen=True)
class Facts:
    """A whole run. `metric`, `latency` and `verify` are None for a folder that was quantized without measuring.

    `integers` has an explained integer of each layer that multiplies, of 64 at most; none where nothing was measured.
    """

    version: Literal[1]
    exactq: str
    model: str
    data: str
    target: str
    isa: str
    recipe: str
    artifact: str
    versions: dict[str, str]
    seed: int
    calibration: int
    verdict: Word
    sentence: str
    metric: MetricFacts | None
    coverage: FiniteFloat | None
    size: Size
    latency: Latency | None
    verify: Verification | None
    layers: tuple[LayerFacts, ...]
    plan: tuple[PlanLine, ...]
    advice: tuple[Advice, ...]
    notes: tuple[str, ...]
    commands: tuple[Command, ...]
    training: TrainingFacts | None
    integers: tuple[IntegerFacts, ...]
    biases: tuple[BiasFacts, ...]


FACTS = TypeAdapter(Facts)
"""Checks and converts facts; `FACTS.json_schema()` describes `report.json`."""


def plain(facts: Facts) -> dict[str, Any]:
    """The facts as what JSON can say: dictionaries, lists, texts and numbers."""
    return FACTS.dump_python(facts, mode="json")


def checked(content: Any) -> Facts:
    """Plain data as facts; raises `ModelError` naming the first field that does not fit."""
    try:
        return FACTS.validate_python(content)
    except ValidationError as error:
        raise ModelError(f"these are no facts of a report: {problem(error)}") from error


def problem(error: ValidationError) -> str:
    """The first thing that a validation found, in one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]
