#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Log-likelihoods of options by transformers on one thread: the peer of `cargo bench --bench trust_scoring`.

    python trust_transformers.py MODEL BATCHES.json f32|f32-scored-rows|bf16

BATCHES.json holds batches of [token ids, number of the first scored token]. A batch is padded on the right and run at once.
`f32` and `bf16` take the logits of all rows and their log-softmax, as evaluation harnesses do; `f32-scored-rows` only of
the rows that are scored. Prints JSON: `cpu_seconds` for all batches, after one to warm up, and the `scores`.

    pip install torch==2.14.* transformers==5.17.*
"""
import json
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def score(model, batch: list, scored_rows: bool) -> list[float]:
    longest = max(len(ids) for ids, _ in batch) - 1
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    row, position, target = [], [], []
    for i, (tokens, first) in enumerate(batch):
        ids[i, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        mask[i, : len(tokens) - 1] = 1
        for j in range(first, len(tokens)):
            row.append(i)
            position.append(j - 1)
            target.append(tokens[j])
    if scored_rows:
        states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        likelihoods = torch.log_softmax(model.lm_head(states[row, position]).float(), -1)
        found = likelihoods[torch.arange(len(row)), target]
    else:
        logits = model(input_ids=ids, attention_mask=mask).logits
        found = torch.log_softmax(logits.float(), -1)[row, position, target]
    sums = [0.0] * len(batch)
    for i, value in zip(row, found.tolist()):
        sums[i] += value
    return sums


def main(folder: str, file: str, mode: str) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with open(file) as f:
        batches = json.load(f)
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    rows = mode == "f32-scored-rows"
    score(model, batches[0], rows)
    start = time.process_time()
    scores = [value for batch in batches for value in score(model, batch, rows)]
    seconds = time.process_time() - start
    print(json.dumps({"cpu_seconds": seconds, "scores": scores}))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
