#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Holds the solver's result to the published form of GPTQ in f64.

FILE has `weight` and `hessian`, OURS the dequantised `weight` that `gptq_solve --file FILE
--ours OURS` wrote: asymmetric 4 bit, groups of 128 with the scales of the original weight in
f32, dampening 0.01, columns from left to right. Prints the share of equal codes and the ratio
of the errors tr(D H D^T).

    pip install torch safetensors numpy
    python gptq_codes_f64.py FILE OURS [--rows 512]
"""
import argparse
import json

import torch
from safetensors.torch import load_file

GROUP, DAMPENING, TOP, BLOCK = 128, 0.01, 15, 128

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file")
parser.add_argument("ours")
parser.add_argument("--rows", type=int, default=512, help="rows compared (they are independent)")
arguments = parser.parse_args()

data = load_file(arguments.file)
weight, hessian = data["weight"][: arguments.rows].double(), data["hessian"].double()
ours = load_file(arguments.ours)["weight"][: arguments.rows].double()
rows, n = weight.shape

groups = data["weight"][:rows].reshape(rows, n // GROUP, GROUP)
low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
scale = (high - low) / TOP  # f32, as stored
zero = torch.round(-low / scale).clamp(0, TOP).double()
scale = scale.double()

damped = hessian + DAMPENING * hessian.diagonal().mean() * torch.eye(n, dtype=torch.float64)
upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
w, codes = weight.clone(), torch.empty_like(weight)
for start in range(0, n, BLOCK):
    end = min(start + BLOCK, n)
    errors = torch.zeros(rows, end - start, dtype=torch.float64)
    for j in range(start, end):
        s, z = scale[:, j // GROUP], zero[:, j // GROUP]
        codes[:, j] = (torch.round(w[:, j] / s) + z).clamp(0, TOP)
        errors[:, j - start] = (w[:, j] - s * (codes[:, j] - z)) / upper[j, j]
        w[:, j:end] -= errors[:, j - start, None] * upper[j, j:end]
    w[:, end:] -= errors @ upper[start:end, end:]

columns = torch.arange(n) // GROUP
theirs = scale[:, columns] * (codes - zero[:, columns])
our_codes = torch.round(ours / scale[:, columns]) + zero[:, columns]


def error(quantised: torch.Tensor) -> float:
    delta = quantised - weight
    return float(((delta @ hessian) * delta).sum())


print(json.dumps({
    "rows": rows,
    "columns": n,
    "equal_codes": float((our_codes == codes).double().mean()),
    "error_ratio": error(ours) / error(theirs),
}))
