#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Lets ggml quantise rows of f32, one thread, no importance matrix.

Calls `ggml_quantize_chunk` of the shared library that llama-cpp-python brings, writes the blocks of each type to
OUT.TYPE, and prints one JSON object: the version and, for each type, the CPU seconds of the call (the least of REPEAT).

    pip install llama-cpp-python numpy
    python quantize_ggml.py ROWS.f32 COLUMNS OUT REPEAT TYPE...
"""
import ctypes
import json
import pathlib
import sys
import time

import numpy as np

# ggml's numbers of its types.
TYPES = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}


def main():
    rows, columns, out, repeat, *names = sys.argv[1:]
    import llama_cpp

    library = ctypes.CDLL(str(next((pathlib.Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    columns = int(columns)
    values = np.fromfile(rows, np.float32).reshape(-1, columns)
    answer = {}
    for name in names:
        kind = TYPES[name]
        blocks = np.zeros(len(values) * library.ggml_row_size(kind, columns), np.uint8)
        seconds = []
        for _ in range(int(repeat)):
            start = time.process_time()
            library.ggml_quantize_chunk(kind, values.ctypes.data, blocks.ctypes.data, 0, len(values), columns, None)
            seconds.append(time.process_time() - start)
        blocks.tofile(f"{out}.{name}")
        answer[name] = min(seconds)
    print(json.dumps({"version": llama_cpp.__version__, "cpu_seconds": answer}))


if __name__ == "__main__":
    main()
