"""Why two executions differ: a closed list, each cause with what can be done about it."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """The name of a cause."""

    WEIGHTS = "different weight grid"
    ACTIVATIONS = "different activation grid"
    PAIRS = "int16 pair saturation"
    RANGE = "reduce_range clamp"
    ZERO = "zero point before or after rounding"
    BIAS = "bias rounding"
    OVERFLOW = "bias overflow"
    MULTIPLIER = "multiplier precision"
    ACTIVATION = "fused activation clamp"
    FLOAT = "operator left in float"
    SUM = "sum added inside a convolution"
    ORDER = "float summation order"
    UNKNOWN = "unknown"


REMEDIES = {
    Cause.WEIGHTS: "deploy the weights' grids that training used: `exactq convert` reads them from the fake-quantize modules",
    Cause.ACTIVATIONS: "give both one plan (`--plan plan.yaml`), or take a prepared model's own grids with `exactq convert`",
    Cause.PAIRS: "quantize with the recipe `portable`, whose weights cannot saturate, or run on a CPU with VNNI",
    Cause.RANGE: "deploy with the bound that training used, `exactq convert` keeps it; or train on all codes of the kernel",
    Cause.ZERO: "it shows at exact half steps only: train or calibrate against the target's emulator, which has its rounding",
    Cause.BIAS: "take an engine that keeps the bias real (fbgemm, x86, onednn), or train through the emulator, which rounds it",
    Cause.OVERFLOW: "a larger scale of weights or activations brings the bias back into int32: exactq's plans see to it",
    Cause.MULTIPLIER: "it is the engine's own float32 arithmetic, one code at half steps: train through the target's emulator",
    Cause.ACTIVATION: "give the output a grid that ends at the activation's bound",
    Cause.FLOAT: "compare plans: give the operator the same grid in both, or leave it float in both",
    Cause.SUM: "the kernel adds before it rounds, once instead of twice: train through the emulator of the engine that runs",
    Cause.ORDER: "none needed: float sums differ in their last bits from library to library; integers do not",
    Cause.UNKNOWN: "the emulator does not have this arithmetic: run `exactq verify`, and report what it says",
}
"""What to do about each, where both executions are quantized."""

BESIDE_FLOAT = {
    Cause.WEIGHTS: "finer weights: more bits or a scale a channel (`exactq plan`), or fine-tune (`exactq run --train always`)",
    Cause.ACTIVATIONS: "another observer or more calibration data, 16-bit or float activations where it is most, or fine-tune",
}
"""What to do about the causes that mean something else beside a float model: there one side has no grid."""
