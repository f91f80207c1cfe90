"""A small convolutional network that trains in seconds: conv-bn-relu-maxpool twice, linear, relu, linear."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SimpleCNN(nn.Module):
    """Class scores (n, classes) of images (n, *shape); shape is (channels, height, width), each side 4 or more."""

    def __init__(self, shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10, width: int = 16) -> None:
        super().__init__()
        channels, height, side = shape
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(2 * width * (height // 4) * (side // 4), 4 * width)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.bn1(self.conv1(x))))
        x = self.pool2(self.relu2(self.bn2(self.conv2(x))))
        x = torch.flatten(x, 1)
        out: Tensor = self.fc2(self.relu3(self.fc1(x)))
        return out
