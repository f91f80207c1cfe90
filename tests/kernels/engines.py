"""PyTorch's own answers to the cases of `engine_cases`, and those of exactq's kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exactq.kernels import aten, fbgemm, inductor, onednn, qnnpack
from exactq.numerics.formats import INT8, UINT8, Grid
from exactq.targets.pytorch.rules import GROUPS
from exactq.targets.pytorch.runtime import detect_isa, threads
from exactq.targets.pytorch.runtime import engine as chosen

from .cases import Array
from .engine_cases import COMPILED, Case


def quantized(codes: Array, scale: float, zero: int) -> Tensor:
    return torch._make_per_tensor_quantized_tensor(torch.from_numpy(codes), scale, zero)


def weight(case: Case) -> Tensor:
    w, sw = torch.from_numpy(case.arrays["w"]), torch.from_numpy(case.arrays["sw"])
    zw = zeros(case)
    if not case.options["channels"]:
        return torch._make_per_tensor_quantized_tensor(w, float(sw), int(zw))
    return torch._make_per_channel_quantized_tensor(w, sw.double(), zw, 0)


def zeros(case: Case) -> Tensor:
    """The zeros of the weights, int64, one where there is one scale."""
    given = case.arrays.get("zw")
    return torch.zeros(len(case.arrays["sw"]), dtype=torch.long) if given is None else torch.from_numpy(given.copy())


def isa_of(name: str) -> str:
    """The instruction set that an engine has here; torch.compile calls oneDNN."""
    return detect_isa("onednn" if name == COMPILED else name)


def ask(name: str, case: Case) -> Array | None:
    """The codes that the engine makes, or None where it refuses (`qnnpack.adds`) or is not predicted (`onednn.undecided`)."""
    # QNNPACK refuses a relu that leaves one code, too.
    if name == "qnnpack" and case.op == "add" and case.options["relu"] and case.options["zy"] == 255:
        return None
    if name == "qnnpack" and case.op == "add" and not qnnpack.adds(*(grid(case.options[f"s{n}"], 0) for n in "aby")):
        return None
    # x86 hands weights with zeros of their own to FBGEMM.
    if case.op in ("conv", "conv_add") and name in ("x86", "onednn", COMPILED) and not zeros(case).any():
        weights = torch.from_numpy(case.arrays["w"])
        if onednn.undecided(weights, case.options["groups"], isa_of(name)):
            return None
    if name == COMPILED:
        with threads(1), torch.no_grad():
            return _ask_compiled(case).contiguous().numpy()
    if case.op == "conv" and name in ("x86", "fbgemm"):
        places = {key: case.options[key] for key in ("stride", "padding", "dilation", "groups")}
        if fbgemm.undecided(case.arrays["w"].shape, **places, isa=detect_isa(name)):
            return None
    with chosen(name), threads(1), torch.no_grad():
        answer = _ASK[case.op](case)
        return (answer.int_repr() if answer.is_quantized else answer).contiguous().numpy()


def _ask_conv(case: Case) -> Tensor:
    o = case.options
    x, bias = case.arrays["x"], case.arrays.get("bias")
    rank = x.ndim - 2
    places = (list(o["stride"]), list(o["padding"]), list(o["dilation"]), o["groups"])
    q: Any = torch.ops.quantized
    packed = getattr(q, f"conv{rank}d_prepack")(weight(case), None if bias is None else torch.from_numpy(bias), *places)
    run = getattr(q, f"conv{rank}d{'_relu' if o['relu'] else ''}")
    return run(quantized(x, o["sx"], o["zx"]), packed, o["sy"], o["zy"])


def _ask_linear(case: Case) -> Tensor:
    o, bias = case.options, case.arrays.get("bias")
    q: Any = torch.ops.quantized
    packed = q.linear_prepack(weight(case), None if bias is None else torch.from_numpy(bias))
    return (q.linear_relu if o["relu"] else q.linear)(quantized(case.arrays["x"], o["sx"], o["zx"]), packed, o["sy"], o["zy"])


def _ask_conv_add(case: Case) -> Tensor:
    o, bias, q = case.options, case.arrays.get("bias"), torch.ops.quantized
    places = (list(o["stride"]), list(o["padding"]), list(o["dilation"]), o["groups"])
    packed = q.conv2d_prepack(weight(case), None if bias is None else torch.from_numpy(bias), *places)
    run: Any = q.conv2d_add_relu if o["relu"] else q.conv2d_add
    return run(operand(case, "x"), operand(case, "a"), packed, o["sy"], o["zy"])  # type: ignore[no-any-return]


def _ask_linear_dynamic(case: Case) -> Tensor:
    o, bias, q = case.options, case.arrays.get("bias"), torch.ops.quantized
    packed = q.linear_prepack(weight(case), None if bias is None else torch.from_numpy(bias))
    run: Any = q.linear_relu_dynamic if o["relu"] else q.linear_dynamic
    return run(torch.from_numpy(case.arrays["x"]), packed, o["reduce_range"])  # type: ignore[no-any-return]


def _ask_compiled(case: Case) -> Tensor:
    """What the operators of a compiled module answer, called as its code calls them."""
    o, arrays, q = case.options, {k: torch.from_numpy(a) for k, a in case.arrays.items()}, torch.ops.onednn
    w, x = arrays["w"], arrays["x"]
    scales, zeros = arrays["sw"].expand(len(w)).contiguous(), torch.zeros(len(w), dtype=torch.int64)
    at = (torch.tensor(o["sx"]), torch.tensor(o["zx"]))
    to, relu = (o["sy"], o["zy"], torch.uint8), "relu" if o["relu"] else "none"
    if case.op == "linear":
        rows = x.reshape(-1, x.shape[-1])
        packed = q.qlinear_prepack(w, list(rows.shape))
        made = q.qlinear_pointwise.tensor(rows, *at, packed, scales, zeros, arrays.get("bias"), *to, relu, [], "")
        return made.reshape(*x.shape[:-1], -1)  # type: ignore[no-any-return]
    places = (list(o["stride"]), list(o["padding"]), list(o["dilation"]), o["groups"])
    packed, x, bias = q.qconv_prepack(w, scales, o["sx"], o["zx"], *places, list(x.shape)), laid_out(x), arrays.get("bias")
    if case.op == "conv":
        return q.qconv_pointwise.tensor(x, *at, packed, scales, zeros, bias, *places, *to, relu, [], "")  # type: ignore[no-any-return]
    added = (laid_out(arrays["a"].clone()), bias)  # the sum is written over it
    how = (o["sa"], o["za"], "sum", 1.0, relu, [], "")
    return q.qconv2d_pointwise.binary_tensor(x, *at, packed, scales, zeros, *added, *places, *to, *how)  # type: ignore[no-any-return]


def _ask_rounding(case: Case) -> Tensor:
    x, s, z = laid_out(torch.from_numpy(case.arrays["x"])), *(torch.from_numpy(case.arrays[k]) for k in "sz")
    axis, several = case.options["axis"], s.numel() > 1 or case.op.endswith("per_channel")
    lo, hi = (-128, 127) if case.options["signed"] else (0, 255)
    dtype, plain = (torch.qint8, torch.int8) if case.options["signed"] else (torch.quint8, torch.uint8)
    one = (float(s[0]), int(z[0]))
    decomposed = torch.ops.quantized_decomposed
    match case.op:
        case "quantize_per_tensor":
            return torch.quantize_per_tensor(x, *one, dtype)
        case "quantize_per_channel":
            return torch.quantize_per_channel(x, s.double(), z, axis, dtype)
        case "fake_quantize_per_tensor":
            return torch.fake_quantize_per_tensor_affine(x, *one, lo, hi)
        case "fake_quantize_per_channel":
            return torch.fake_quantize_per_channel_affine(x, s, z.int(), axis, lo, hi)
        case _ if several:
            return decomposed.quantize_per_channel(x, s, z, axis, lo, hi, plain)  # type: ignore[no-any-return]
    return decomposed.quantize_per_tensor(x, *one, lo, hi, plain)  # type: ignore[no-any-return]


def laid_out(x: Tensor) -> Tensor:
    """Dense, images with their channels last, as the target's loader lays its values out."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats.get(x.ndim, torch.contiguous_format))


def operand(case: Case, name: str) -> Tensor:
    return laid_out(quantized(case.arrays[name], case.options[f"s{name}"], case.options[f"z{name}"]))


def _ask_pair(case: Case) -> Tensor:
    o = case.options
    run: Any = getattr(torch.ops.quantized, f"{case.op}{'_relu' if o['relu'] else ''}")
    return run(operand(case, "a"), operand(case, "b"), o["sy"], o["zy"])


def _ask_cat(case: Case) -> Tensor:
    o, run = case.options, torch.ops.quantized.cat
    return run([operand(case, "a"), operand(case, "b")], o["axis"], o["sy"], o["zy"])  # type: ignore[no-any-return]


def _ask_pool(case: Case) -> Tensor:
    o, x = case.options, operand(case, "x")
    run: Any = getattr(F, f"{case.op}{x.ndim - 2}d")
    if case.op == "adaptive_avg_pool":
        return run(x, o["output"])
    more = {"count_include_pad": o["count_include_pad"]} if case.op == "avg_pool" else {}
    return run(x, o["kernel"], o["stride"], o["padding"], **more)


def _ask_unary(case: Case) -> Tensor:
    o, q, x = case.options, torch.ops.quantized, operand(case, "x")
    if case.op == "leaky_relu":
        return q.leaky_relu(x, o["slope"], False, o["sy"], o["zy"])  # type: ignore[no-any-return]
    return getattr(q, case.op)(x, o["sy"], o["zy"])


def _ask_quantize(case: Case) -> Tensor:
    x = laid_out(torch.from_numpy(case.arrays["x"]))
    return torch.quantize_per_tensor(x, case.options["sy"], case.options["zy"], torch.quint8)


_ASK = {
    "conv": _ask_conv,
    "linear": _ask_linear,
    "quantize": _ask_quantize,
    "dequantize": lambda case: operand(case, "x").dequantize(),
    "add": _ask_pair,
    "mul": _ask_pair,
    "cat": _ask_cat,
    "max_pool": _ask_pool,
    "avg_pool": _ask_pool,
    "adaptive_avg_pool": _ask_pool,
    "sigmoid": _ask_unary,
    "hardswish": _ask_unary,
    "leaky_relu": _ask_unary,
    "mean": lambda case: torch.mean(operand(case, "x").contiguous(), case.options["dims"], keepdim=case.options["keep"]),
    "conv_add": _ask_conv_add,
    "linear_dynamic": _ask_linear_dynamic,
    **dict.fromkeys(
        (
            "quantize_per_tensor",
            "quantize_per_channel",
            "fake_quantize_per_tensor",
            "fake_quantize_per_channel",
            "quantize_decomposed",
        ),
        _ask_rounding,
    ),
}


def grid(scale: float, zero: int) -> Grid:
    return Grid(UINT8, torch.tensor(scale, dtype=torch.float32), torch.tensor(zero, dtype=torch.int32))


def weight_grid(case: Case) -> Grid:
    sw = torch.from_numpy(case.arrays["sw"].copy())
    sw = sw.reshape(-1, *[1] * (case.arrays["w"].ndim - 1)) if case.options["channels"] else sw.reshape(())
    return Grid(INT8, sw, zeros(case).to(torch.int32).reshape(sw.shape))


def emulate(name: str, case: Case, isa: str) -> Array:
    """The codes that exactq's kernels make."""
    o, arrays = case.options, {k: torch.from_numpy(a) for k, a in case.arrays.items()}
    if case.op in _ROUNDINGS:
        return _rounded(case, arrays["x"])
    if case.op == "linear_dynamic":
        library, more = (
            {"onednn": onednn, "qnnpack": qnnpack}.get(name, fbgemm),
            {"isa": isa, "reduce_range": o["reduce_range"]},
        )
        told = {"w": weight_grid(case), "relu": o["relu"]} | ({} if name == "qnnpack" else more)
        return library.linear_dynamic(arrays["w"], arrays.get("bias"), **told)(arrays["x"]).numpy()  # type: ignore[no-any-return]
    if case.op in ("conv", "linear", "conv_add"):
        grids = {"x": grid(o["sx"], o["zx"]), "w": weight_grid(case), "y": grid(o["sy"], o["zy"])}
        places = {k: o[k] for k in ("stride", "padding", "dilation", "groups", "relu") if k in o}
        kernels = {"fbgemm": fbgemm, "x86": fbgemm, "onednn": onednn, "qnnpack": qnnpack, COMPILED: onednn}
        library: Any = kernels[name]
        symmetric = not zeros(case).any()
        if name == "x86" and case.op == "conv" and isa == "avx512vnni" and o["groups"] <= GROUPS and symmetric:
            library = onednn
        where = {} if name == "qnnpack" else {"isa": isa}
        where |= {"inverted": False} if name == COMPILED else {}
        if case.op == "conv_add":
            kernel = onednn.conv_add(arrays["w"], arrays.get("bias"), added=grid(o["sa"], o["za"]), **grids, **places, **where)
            return kernel(arrays["x"], arrays["a"]).to(torch.uint8).contiguous().numpy()
        made = getattr(library, case.op)(arrays["w"], arrays.get("bias"), **grids, **places, **where)(arrays["x"])
        return made.to(torch.uint8).numpy()
    made = _kernel(name, case, isa)(*arrays.values())
    return made.contiguous().numpy() if case.op == "dequantize" else made.to(torch.uint8).contiguous().numpy()


_ROUNDINGS: dict[str, Any] = {
    "quantize_per_tensor": aten.quantize_per_tensor,
    "quantize_per_channel": aten.quantize_per_channel,
    "fake_quantize_per_tensor": aten.fake_quantize_per_tensor,
    "fake_quantize_per_channel": aten.fake_quantize_per_channel,
    "quantize_decomposed": aten.quantize_decomposed,
}


def _rounded(case: Case, x: Tensor) -> Array:
    s, z, shape = torch.from_numpy(case.arrays["s"].copy()), torch.from_numpy(case.arrays["z"]).int(), [1] * x.ndim
    shape[case.options["axis"]] = -1
    single = s.numel() == 1 and case.op != "quantize_per_channel"
    fmt = INT8 if case.options["signed"] else UINT8
    at = Grid(fmt, s.reshape(()), z.reshape(())) if single else Grid(fmt, s.reshape(shape), z.reshape(shape))
    made = _ROUNDINGS[case.op](at)(x)
    return (made if case.op.startswith("fake") else made.to(fmt.dtype)).contiguous().numpy()  # type: ignore[no-any-return]


def _kernel(name: str, case: Case, isa: str) -> Any:
    return _compiled(case) if name == COMPILED else _engines(name, case, isa)


def _compiled(case: Case) -> Any:
    """What the loops of a compiled module make; `compiled.py` asks for their answers, many at a time."""
    o = case.options
    x, y, a, b = (grid(o[f"s{n}"], o[f"z{n}"]) if f"s{n}" in o else None for n in "xyab")
    places = {k: o[k] for k in ("kernel", "stride", "padding", "count_include_pad") if k in o}
    match case.op:
        case "add" | "mul":
            return getattr(inductor, case.op)(a, b, y, relu=o["relu"])
        case "cat":
            return inductor.concat([a, b], y, axis=o["axis"])
        case "avg_pool":
            return inductor.average_pool(x, **places)
        case "adaptive_avg_pool":
            return inductor.adaptive_average_pool(x, output=o["output"])
        case "mean":
            return inductor.mean(x, dims=o["dims"], keep=o["keep"])
        case "leaky_relu":
            return inductor.leaky_relu(x, y, slope=o["slope"])
        case "hardswish":
            return inductor.hardswish(x, y)
    return inductor.quantize(y)


def _engines(name: str, case: Case, isa: str) -> Any:
    o = case.options
    x, y, a, b = (grid(o[f"s{n}"], o[f"z{n}"]) if f"s{n}" in o else None for n in "xyab")
    qnn = name == "qnnpack"
    places = {k: o[k] for k in ("kernel", "stride", "padding") if k in o}
    match case.op:
        case "quantize":
            return aten.quantize_per_tensor(y)
        case "dequantize":
            return aten.dequantize(x)
        case "add":
            return qnnpack.add(a, b, y, relu=o["relu"]) if qnn else aten.add(a, b, y, relu=o["relu"])
        case "mul":
            return aten.mul(a, b, y, relu=o["relu"])
        case "cat":
            return aten.concat([a, b], y, axis=o["axis"])
        case "max_pool":
            pool: Any = getattr(F, f"max_pool{len(o['kernel'])}d")
            return lambda codes: pool(codes.float(), *places.values())
        case "avg_pool":
            if qnn and len(o["kernel"]) < 3:
                return qnnpack.average_pool(x, **places)
            return aten.average_pool(x, **places, count_include_pad=o["count_include_pad"], isa=isa)
        case "adaptive_avg_pool":
            return (qnnpack if qnn and len(o["output"]) < 3 else aten).adaptive_average_pool(x, output=o["output"])
        case "mean":
            return aten.mean(x, dims=o["dims"], keep=o["keep"])
        case "leaky_relu":
            return aten.leaky_relu(x, y, slope=o["slope"])
        case "hardswish":
            return (qnnpack if qnn else aten).hardswish(x, y)
        case _:
            return aten.sigmoid(x, y)
