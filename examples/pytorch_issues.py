"""Three models of PyTorch's issue tracker whose outputs jump when they are converted: why, and deployed as they were trained.

    python examples/pytorch_issues.py [95785|88800|108639 ...] [--engine fbgemm|x86|onednn|qnnpack] [--version 0|1]

Each function gives the prepared model as it was trained, what `torch.ao.quantization.convert` makes of it, and inputs; the
models are written from what the issues describe. Version 1 is PyTorch's fused fake quantization, its default; 0 the older one.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Case:
    """`prepared` is the trained model, `converted` PyTorch's own conversion of it, `inputs` the case's own inputs."""

    name: str
    engine: str
    prepared: nn.Module
    converted: nn.Module
    inputs: tuple[Tensor, ...]


@contextmanager
def on_engine(name: str) -> Iterator[None]:
    """A context in which PyTorch's quantized engine is `name`, on one thread."""
    before, threads = torch.backends.quantized.engine, torch.get_num_threads()
    torch.backends.quantized.engine = name
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
        torch.set_num_threads(threads)


def _case(name: str, engine: str, prepared: nn.Module, inputs: tuple[Tensor, ...]) -> Case:
    return Case(name, engine, prepared, tq.convert(copy.deepcopy(prepared)), inputs)


class Pointwise(nn.Module):
    """One 1x1 convolution between stubs."""

    def __init__(self, *, bias: bool, relu: bool) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.conv = nn.Conv2d(3, 3, 1, bias=bias)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.relu(self.conv(self.quant(x))))


def ramp(engine: str) -> Case:
    """PyTorch #95785: the identity as a 1x1 convolution. QAT gives 0..255, the converted model repeats 127 and ends at 254."""
    with on_engine(engine):
        model = Pointwise(bias=False, relu=True)
        with torch.no_grad():
            model.conv.weight.copy_(torch.eye(3).reshape(3, 3, 1, 1))
        model = tq.fuse_modules(model.eval(), [["conv", "relu"]]).train()
        observer = tq.MovingAverageMinMaxObserver
        activation = tq.FusedMovingAvgObsFakeQuantize.with_args(
            observer=observer, quant_min=0, quant_max=255, dtype=torch.quint8, qscheme=torch.per_tensor_affine
        )
        model.qconfig = tq.QConfig(activation, tq.default_fused_wt_fake_quant)
        prepared = tq.prepare_qat(model).train()
        x = torch.arange(256).repeat(1, 3, 4, 1) / 255.0
        with torch.no_grad():
            prepared(x)
        prepared.eval().apply(tq.disable_observer)
        return _case("#95785", engine, prepared, (x,))


def pointwise(engine: str, *, version: int = 1) -> Case:
    """PyTorch #88800: a 1x1 convolution of an image. 15 to 30 % of the outputs differ after `convert`."""
    with on_engine(engine):
        torch.manual_seed(0)
        x = torch.rand(1, 3, 224, 224)
        model = Pointwise(bias=True, relu=False).train()
        model.qconfig = tq.get_default_qat_qconfig(engine, version)
        prepared = tq.prepare_qat(model)
        with torch.no_grad():
            for _ in range(10):
                prepared(x)
        prepared.eval().apply(tq.disable_observer)
        return _case("#88800", engine, prepared, (x,))


class Spiral(nn.Module):
    """A classifier of points in the plane: 2, 64, 64, 1."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.fc1, self.relu1 = nn.Linear(2, 64), nn.ReLU()
        self.fc2, self.relu2 = nn.Linear(64, 64), nn.ReLU()
        self.fc3 = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.fc1(self.quant(x)))
        return self.dequant(self.fc3(self.relu2(self.fc2(x))))


def spiral(engine: str, *, version: int = 1, steps: int = 150) -> Case:
    """PyTorch #108639: two spirals of 3000 points each, trained with QAT."""
    rng = np.random.RandomState(0)
    angle = rng.rand(6000) * 10.0
    noise = rng.randn(6000, 2) * np.sqrt(0.003)
    points = np.stack([0.1 * angle * np.cos(angle), 0.1 * angle * np.sin(angle)], 1) + noise
    points[3000:] *= -1
    x = torch.tensor(points, dtype=torch.float32)
    y = (torch.arange(6000) < 3000).float()[:, None]
    with on_engine(engine):
        torch.manual_seed(0)
        model = tq.fuse_modules_qat(Spiral().train(), [["fc1", "relu1"], ["fc2", "relu2"]])
        model.qconfig = tq.get_default_qat_qconfig(engine, version)
        prepared = tq.prepare_qat(model)
        optimizer = torch.optim.Adam(prepared.parameters(), 3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(prepared(x), y).backward()
            optimizer.step()
        prepared.eval().apply(tq.disable_observer)
        return _case("#108639", engine, prepared, (x,))


CASES: dict[str, Callable[..., Case]] = {"95785": ramp, "88800": pointwise, "108639": spiral}


def main() -> None:
    """Print of each case how far it jumps, why, and what is left of it once it is deployed with the grids of its training."""
    import exactq
    from exactq.conversion import foreign
    from exactq.errors import ModelError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="NUMBER", help=f"{', '.join(CASES)}; all without one")
    parser.add_argument("--engine", default="fbgemm", choices=["fbgemm", "x86", "onednn", "qnnpack"])
    parser.add_argument("--version", type=int, default=1, choices=[0, 1])
    asked = parser.parse_args()
    for number in asked.cases or CASES:
        if number not in CASES:
            parser.error(f"there is no case '{number}': {', '.join(CASES)}")
        version = {} if number == "95785" else {"version": asked.version}
        case = CASES[number](asked.engine, **version)
        with on_engine(asked.engine), torch.no_grad():
            trained, converted = case.prepared(*case.inputs), case.converted(*case.inputs)
            print(f"{case.name} on {asked.engine}: {count(trained, converted)} differ after torch.ao.quantization.convert\n")
            print(exactq.diff(case.prepared, case.converted, [case.inputs], inputs=len(case.inputs[0])))
            for target in dict.fromkeys((asked.engine, "x86", "fbgemm")):
                try:
                    repaired = foreign(case.prepared, case.inputs, target=target).quantized
                except ModelError as error:
                    print(f"\nnot on {target}: {error}")
                    continue
                (deployed,) = repaired.target.open(repaired.artifact()).run(case.inputs)
                print(f"\n{case.name}, deployed on {target} by exactq.convert: {count(trained, deployed)} differ")
                print("".join(f"  {note}\n" for note in repaired.notes), end="")
                if torch.equal(trained, deployed):
                    break
        print()


def count(a: Tensor, b: Tensor) -> str:
    """How many outputs differ, of how many."""
    return f"{int((a != b).sum()):,} of {a.numel():,} outputs"


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # torch.ao says at every step that it will be removed
    main()
