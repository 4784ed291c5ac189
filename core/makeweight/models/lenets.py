"""LeNet-300-100 and LeNet-5 (LeCun et al. 1998)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet300(nn.Module):
    """LeNet-300-100 (LeCun et al. 1998): three fully connected layers, 266,610 parameters on MNIST."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.fc1 = nn.Linear(channels * height * width, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        x = torch.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(torch.relu(self.fc2(x)))
        return logits


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's variant: two convolutions and two fully connected layers, 431,080 parameters on MNIST."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(50 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2), 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        logits: Tensor = self.fc2(torch.relu(self.fc1(x.flatten(1))))
        return logits
