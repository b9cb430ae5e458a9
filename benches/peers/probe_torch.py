#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Training steps of a ProbeX probe in torch, written from its equations.

FOLDER holds probe.safetensors (the start), layers (f32; models, rows, columns) and truths (f32; models, classes).
Prints one JSON object: the cost of each step of the first passes, and the CPU seconds of each pass after.

    pip install torch safetensors numpy
    python probe_torch.py FOLDER MODELS ROWS COLUMNS CLASSES BATCH COMPARED TIMED RATE DECAY
"""
import json
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

folder = sys.argv[1]
models, rows, columns, classes, batch, compared, timed = map(int, sys.argv[2:9])
rate, decay = map(float, sys.argv[9:11])
torch.set_num_threads(1)
layers = torch.from_numpy(np.fromfile(f"{folder}/layers", np.float32).reshape(models, rows, columns))
truths = torch.from_numpy(np.fromfile(f"{folder}/truths", np.float32).reshape(models, classes))
parameters = {name: value.requires_grad_() for name, value in load_file(f"{folder}/probe.safetensors").items()}
optimiser = torch.optim.Adam(list(parameters.values()), lr=rate, weight_decay=decay)


def step(x, t):
    s = x @ parameters["xu.probes"]
    h = F.relu(parameters["xu.projection"] @ s)
    e = F.linear(h.transpose(1, 2).flatten(1), parameters["encoder.weight"], parameters["encoder.bias"])
    y = F.linear(e, parameters["head.weight"], parameters["head.bias"])
    loss = F.binary_cross_entropy_with_logits(y, t)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.item()


def epoch():
    return [step(layers[at:at + batch], truths[at:at + batch]) for at in range(0, models, batch)]


costs = [cost for _ in range(compared) for cost in epoch()]
seconds = []
for _ in range(timed):
    start = time.process_time()
    epoch()
    seconds.append(time.process_time() - start)
json.dump({"costs": costs, "cpu_seconds_a_pass": seconds, "torch": torch.__version__}, sys.stdout)
