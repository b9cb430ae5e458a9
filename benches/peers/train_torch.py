#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Training steps of a small net in torch: a residual net of the CIFAR kind with channels last, or linears.

FOLDER holds weights.safetensors (which net it is follows from the names), images (f32; images, height, width, channels)
and labels (bytes). Prints one JSON object: the costs of the first steps and the median CPU seconds of those after.

    pip install torch safetensors numpy
    python train_torch.py FOLDER BATCH HEIGHT WIDTH CHANNELS COMPARED TIMED RATE MOMENTUM
"""
import json
import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.below = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.below, self.below))
        return F.relu(y + x, inplace=True)


class ResNet(nn.Module):
    def __init__(self, width, channels, blocks, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before, self.stages = width, len(blocks)
        for stage, count in enumerate(blocks):
            after, made = width << stage, []
            for block in range(count):
                made.append(Block(before, after, 2 if stage and not block else 1))
                before = after
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
        self.linear = nn.Linear(before, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.linear(x.mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.names = sorted(name[:-7] for name in weights if name.startswith("fc") and name.endswith(".weight"))
        for name in self.names + ["linear"]:
            outputs, inputs = weights[f"{name}.weight"].shape
            setattr(self, name, nn.Linear(inputs, outputs))

    def forward(self, x):
        x = x.flatten(1)
        for name in self.names:
            x = F.relu(getattr(self, name)(x), inplace=True)
        return self.linear(x)


def main():
    folder = sys.argv[1]
    batch, height, width, channels, compared, timed = map(int, sys.argv[2:8])
    rate, momentum = map(float, sys.argv[8:10])
    torch.set_num_threads(1)
    weights = load_file(f"{folder}/weights.safetensors")
    images = np.fromfile(f"{folder}/images", np.float32).reshape(batch, height, width, channels)
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(np.fromfile(f"{folder}/labels", np.uint8).astype(np.int64))
    if "conv1.weight" in weights:
        blocks = []
        while f"layer{len(blocks) + 1}.0.conv1.weight" in weights:
            stage = f"layer{len(blocks) + 1}."
            blocks.append(len({name.split(".")[1] for name in weights if name.startswith(stage)}))
        net = ResNet(weights["conv1.weight"].shape[0], channels, blocks, weights["linear.weight"].shape[0])
        images = images.contiguous(memory_format=torch.channels_last)
    else:
        net = Mlp(weights)
        images = images.contiguous()
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    if "conv1.weight" in weights:
        net = net.to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), rate, momentum)

    def step():
        optimiser.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    costs, seconds = [step() for _ in range(compared)], []
    for _ in range(timed):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    json.dump({"costs": costs, "cpu_seconds_a_step": statistics.median(seconds), "torch": torch.__version__}, sys.stdout)


main()
