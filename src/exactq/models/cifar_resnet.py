"""The ResNets for CIFAR of He et al. 2015 (arXiv 1512.03385, section 4.2), with parameter-free shortcuts (option A).

6n + 2 layers: n = 3, 5, 7, 9 gives 20, 32, 44, 56. Modules are named as in github.com/akamaster/pytorch_resnet_cifar10,
whose trained weights fit (`conv1`, `layer1.0.bn2`, `linear` …).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """y = relu(bn2(conv2(relu(bn1(conv1(x))))) + s(x)); where the shape changes, s halves the image and pads channels."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.padding = (out - channels) // 2  # zero channels on each side; 0 means that the shortcut is x itself

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """Class scores (n, classes) of images (n, *shape); shape is (channels, height, width), `blocks` is n in 6n + 2 layers."""

    def __init__(self, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = torch.flatten(F.adaptive_avg_pool2d(out, 1), 1)
        scores: Tensor = self.linear(out)
        return scores


def _stage(channels: int, out: int, blocks: int, *, stride: int) -> nn.Sequential:
    """`blocks` blocks, the first of which changes the shape."""
    return nn.Sequential(Block(channels, out, stride), *(Block(out, out, 1) for _ in range(blocks - 1)))
