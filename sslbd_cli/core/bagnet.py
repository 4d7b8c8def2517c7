"""BagNet (Brendel and Bethge, ICLR 2019): a ResNet-50 with most 3x3 convolutions replaced by 1x1, and no padding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

DEPTHS, STRIDES = (3, 4, 6, 3), (2, 2, 2, 1)
#: field -> first kernel of each layer. After the stem's 3 pixels, a 3x3 kernel adds 2, 4, 8 and 16 pixels.
KERNELS = {9: (3, 3, 1, 1), 17: (3, 3, 3, 1), 33: (3, 3, 3, 3)}


class Bottleneck(nn.Module):
    """Three unpadded convolutions and a shortcut, whose maps are cropped at the far side to match."""

    def __init__(self, cin: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, kernel, stride, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module | None = None
        if stride != 1 or cin != 4 * width:
            shortcut = nn.Conv2d(cin, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(out + shortcut[:, :, : out.shape[2], : out.shape[3]])


class BagNetwork(nn.Module):
    """BagNet without its classifier: B,3,H,W to B,2048, the mean of its local features."""

    def __init__(self, field: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 64, 1, bias=False), nn.Conv2d(64, 64, 3, bias=False))
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(64), nn.ReLU(), nn.Identity()
        cin = 64
        for number, (depth, stride, kernel) in enumerate(zip(DEPTHS, STRIDES, KERNELS[field], strict=True), 1):
            width = 32 << number
            blocks = [Bottleneck(cin, width, kernel, stride)]
            cin = 4 * width
            blocks += [Bottleneck(cin, width, 1, 1) for _ in range(depth - 1)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.normal_(conv.weight, 0, (2 / (conv.kernel_size[0] ** 2 * conv.out_channels)) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x.mean((2, 3))
