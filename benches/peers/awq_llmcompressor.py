#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""llm-compressor's search for AWQ's scales on what `cargo bench --bench awq_search -- --write FOLDER` saved.

    pip install llmcompressor==0.14.0.1
    OMP_NUM_THREADS=1 python awq_llmcompressor.py FILE... [--repeat 3]

Its grid search runs on a parent that is the linear itself, so that its loss is ours: asymmetric 4 bit, groups of 64,
scales by inputs and weights, the same exponents (and 1, which ours leaves out). One JSON line a file: CPU seconds of one
thread, the median of the runs, and the least error as a share of the outputs' energy.
"""
import argparse
import json
import os
import statistics
import time
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, initialize_module_for_quantization
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.awq.mappings import ResolvedMapping
from safetensors.torch import load_file
from torch import nn

STEPS = 20


def search(weight: torch.Tensor, x: torch.Tensor) -> tuple[float, list[float]]:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=False, strategy="group", group_size=64)
    initialize_module_for_quantization(linear, QuantizationScheme(targets=["Linear"], weights=weights))
    linear.quantization_enabled = False  # the search rounds the weights itself
    modifier = AWQModifier(duo_scaling=True, n_grid=STEPS + 2)
    modifier._smooth_activation_stats = {"norm": [x.abs().sum(0), torch.tensor(len(x))]}
    mapping = ResolvedMapping("norm", nn.LayerNorm(len(weight)), [linear], ["linear"], parent=linear, parent_name="parent")
    losses = []

    def noted(self, *outputs):
        losses.append(compute_loss(self, *outputs))
        return losses[-1]

    compute_loss = AWQModifier._compute_loss
    with patch.multiple(AWQModifier, _run_samples=lambda _, module: [module(x)], _compute_loss=noted), torch.no_grad():
        start = time.process_time()
        modifier._compute_best_scale(mapping, [linear(x)], {linear: weight})
        return time.process_time() - start, losses


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="+")
    p.add_argument("--repeat", type=int, default=3)
    a = p.parse_args()
    torch.set_num_threads(1)
    for path in a.files:
        tensors = load_file(path)
        weight, x = tensors["weight"], tensors["inputs"]
        runs = [search(weight, x) for _ in range(a.repeat)]
        losses = runs[0][1]
        energy = float((x.double() @ weight.double().T).square().mean())
        best = min(range(len(losses)), key=losses.__getitem__)
        print(
            json.dumps(
                {
                    "peer": "llmcompressor",
                    "shape": list(weight.shape),
                    "cpu_seconds": statistics.median(seconds for seconds, _ in runs),
                    "exponent": max(best - 1, 0) / STEPS,
                    "error": losses[best] / energy,
                    "error_over_rtn": losses[best] / losses[0],
                }
            )
        )


if __name__ == "__main__":
    main()
