"""ResNet-18 for ImageNet (He et al. 2015, arXiv 1512.03385, table 1), with torchvision's module names: its weights fit.

For images of at most 64 pixels there is the form that is usual for CIFAR: a stem of 3×3 with stride 1, no pooling behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """y = relu(bn2(conv2(relu(bn1(conv1(x))))) + d(x)); d is a 1×1 convolution and batch norm where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + (x if self.downsample is None else self.downsample(x))
        activated: Tensor = self.relu(out)
        return activated


class ResNet18(nn.Module):
    """Class scores (n, classes) of images (n, *shape); shape is (channels, height, width).

    `small` is the form for small images; `width` multiplies the channels.
    """

    def __init__(
        self, shape: tuple[int, int, int] = (3, 224, 224), classes: int = 1000, *, small: bool = False, width: float = 1.0
    ) -> None:
        super().__init__()
        a, b, c, d = (int(channels * width) for channels in (64, 128, 256, 512))
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(shape[0], a, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(a, a, 1), BasicBlock(a, a, 1))
        self.layer2 = nn.Sequential(BasicBlock(a, b, 2), BasicBlock(b, b, 1))
        self.layer3 = nn.Sequential(BasicBlock(b, c, 2), BasicBlock(c, c, 1))
        self.layer4 = nn.Sequential(BasicBlock(c, d, 2), BasicBlock(d, d, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(d, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        scores: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return scores
