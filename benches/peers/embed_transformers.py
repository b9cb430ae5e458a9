#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Sentence embeddings by transformers on one thread: the peer of `cargo bench --bench embed`.

    python embed_transformers.py MODEL TEXTS.json MAX_TOKENS

Texts are sorted by length and run in padded batches of 32, as sentence-transformers does; vectors are the mean over the
real tokens, scaled to length 1. Prints JSON: `cpu_seconds` for tokenising, running and pooling all texts, after one batch
to warm up, and the `vectors` in the order of the texts.

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
from transformers import AutoModel, AutoTokenizer

BATCH = 32


@torch.inference_mode()
def embed(model, tokenizer, texts: list[str], max_tokens: int) -> list[list[float]]:
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    vectors = [None] * len(texts)
    for first in range(0, len(texts), BATCH):
        chosen = order[first : first + BATCH]
        batch = tokenizer(
            [texts[i] for i in chosen], padding=True, truncation=True, max_length=max_tokens, return_tensors="pt"
        )
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).float()
        pooled = (states * mask).sum(1) / mask.sum(1)
        for i, vector in zip(chosen, torch.nn.functional.normalize(pooled, dim=1).tolist()):
            vectors[i] = vector
    return vectors


def main(folder: str, file: str, max_tokens: int) -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with open(file) as f:
        texts = json.load(f)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    embed(model, tokenizer, texts[:BATCH], max_tokens)
    start = time.process_time()
    vectors = embed(model, tokenizer, texts, max_tokens)
    seconds = time.process_time() - start
    print(json.dumps({"cpu_seconds": seconds, "vectors": vectors}))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
