"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2), with torchvision's module names: its weights fit.

For images of at most 64 pixels there is the form that is usual for CIFAR: the stem and the second stage keep the size, so
that 32×32 becomes 4×4 and not 1×1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion t, output channels c, repetitions n, stride s of the first), as in the paper's table 2."""
STEM, HEAD, DROPOUT = 32, 1280, 0.2


class InvertedResidual(nn.Module):
    """y = project(depthwise(expand(x))), + x where the shape stays; relu6 after the first two, none after the third."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        expand = [] if expansion == 1 else [_conv_bn_relu6(channels, hidden, kernel=1)]
        self.conv = nn.Sequential(
            *expand,
            _conv_bn_relu6(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """Class scores (n, classes) of images (n, *shape); shape is (channels, height, width).

    `small` is the form for small images; `width` multiplies the channels, to a multiple of 8.
    """

    def __init__(
        self, shape: tuple[int, int, int] = (3, 224, 224), classes: int = 1000, *, small: bool = False, width: float = 1.0
    ) -> None:
        super().__init__()
        channels, head = _scaled(STEM, width), _scaled(HEAD, max(1.0, width))
        blocks: list[nn.Module] = [_conv_bn_relu6(shape[0], channels, kernel=3, stride=1 if small else 2)]
        for position, (expansion, wanted, repetitions, stride) in enumerate(STAGES):
            out = _scaled(wanted, width)
            for repetition in range(repetitions):
                keeps = repetition > 0 or (small and position == 1)
                blocks.append(InvertedResidual(channels, out, 1 if keeps else stride, expansion))
                channels = out
        self.features = nn.Sequential(*blocks, _conv_bn_relu6(channels, head, kernel=1))
        self.classifier = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(head, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(F.adaptive_avg_pool2d(self.features(x), (1, 1)), 1)
        scores: Tensor = self.classifier(x)
        return scores


def _conv_bn_relu6(channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(inplace=True),
    )


def _scaled(channels: int, width: float) -> int:
    """channels · width as the nearest multiple of 8, at least 8, and never more than 10 % less: the paper's own rounding."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8
