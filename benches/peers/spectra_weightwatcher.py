#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Power-law exponents of every layer by WeightWatcher, with its default settings.

Loads the Hugging Face folder MODEL and prints, as the last line, one JSON object: the CPU seconds
of `analyze` (imports and loading not counted) and the exponent of each layer by its name.

    pip install weightwatcher==0.7.7 torch transformers
    OMP_NUM_THREADS=1 OPENBLAS_CORETYPE=SkylakeX python spectra_weightwatcher.py MODEL
"""
import json
import logging
import sys
import time

logging.disable(logging.CRITICAL)

import torch
import weightwatcher
from transformers import AutoModelForCausalLM


def main():
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    watcher = weightwatcher.WeightWatcher(model=model)
    start = time.process_time()
    details = watcher.analyze(plot=False, savefig=False)
    seconds = time.process_time() - start
    alphas = {row.longname: float(row.alpha) for row in details.itertuples()}
    print(json.dumps({"cpu_seconds": seconds, "weightwatcher": weightwatcher.__version__, "alpha": alphas}))


main()
