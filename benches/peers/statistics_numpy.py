#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Weight statistics as one writes them in NumPy: the six usual ones, or the whole health table.

Reads every tensor (bf16, f16 or f32) of the safetensors files in FOLDER by memory map and prints
one JSON object: the CPU seconds of the work (imports and headers not counted) and the figures.

    pip install numpy
    OMP_NUM_THREADS=1 OPENBLAS_CORETYPE=SkylakeX python statistics_numpy.py FOLDER moments|full
"""
import json
import pathlib
import struct
import sys
import time

import numpy as np

LEVELS = [0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999]


def tensors(folder):
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        data = np.memmap(file, np.uint8, "r")
        length = struct.unpack("<Q", data[:8].tobytes())[0]
        header = json.loads(data[8 : 8 + length].tobytes())
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = (8 + length + at for at in entry["data_offsets"])
            yield name, entry["dtype"], entry["shape"], data[start:end]


def decode(dtype, raw):
    if dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view({"F16": np.float16, "F32": np.float32}[dtype]).astype(np.float32)


def moments(x):
    mean = x.mean(dtype=np.float64)
    centred = x - np.float32(mean)
    square = centred * centred
    variance = square.mean(dtype=np.float64)
    fourth = (square * square).mean(dtype=np.float64)
    return {
        "mean": float(mean),
        "std": float(np.sqrt(variance)),
        "min": float(x.min()),
        "max": float(x.max()),
        "l2": float(np.sqrt(np.square(x).sum(dtype=np.float64))),
        "kurtosis": float(fourth / variance**2) if variance > 0 else 0.0,
    }


def lines(energy):
    order = np.sort(energy)[::-1]
    alive = order[order > 0]
    median = alive[len(alive) // 2] if len(alive) else 0.0
    return {
        "dead": int((energy == 0).sum()),
        "outliers": int((energy > 25 * median).sum()),
        "top_energy": float(order[: -(-len(order) // 100)].sum() / order.sum()) if len(alive) else 0.0,
    }


def full(x, shape):
    out = moments(x)
    finite = np.isfinite(x)
    if not finite.all():
        x = x[finite]
    centred = x - np.float32(out["mean"])
    bits = x.view(np.uint32)
    out["nan"] = int(np.isnan(x).sum())
    out["infinite"] = int(np.isinf(x).sum())
    out["zeros"] = int((x == 0).sum())
    out["denormals"] = int((((bits & 0x7F800000) == 0) & ((bits & 0x7FFFFF) != 0)).sum())
    out["l1"] = float(np.abs(x).sum(dtype=np.float64))
    cube = (centred * centred * centred).mean(dtype=np.float64)
    out["skewness"] = float(cube / out["std"] ** 3) if out["std"] > 0 else 0.0
    out["quantiles"] = [float(q) for q in np.quantile(x, LEVELS, method="inverted_cdf")]
    if len(shape) == 2:
        matrix = x.reshape(shape)
        square = np.square(matrix)
        out["columns"] = lines(square.sum(axis=0, dtype=np.float64))
        energy = square.sum(axis=1, dtype=np.float64)
        out["rows"] = lines(energy)
        seen, duplicated = set(), 0
        for row, size in zip(matrix, energy):
            key = row.tobytes() if size > 0 else None
            duplicated += key in seen
            if key is not None:
                seen.add(key)
        out["rows"]["duplicated"] = duplicated
    return out


def main():
    folder, table = sys.argv[1:3]
    work = list(tensors(folder))
    figures = {}
    start = time.process_time()
    for name, dtype, shape, raw in work:
        x = decode(dtype, raw)
        figures[name] = moments(x) if table == "moments" else full(x, shape)
    seconds = time.process_time() - start
    json.dump({"cpu_seconds": seconds, "numpy": np.__version__, "tensors": figures}, sys.stdout)


main()
