#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Pruning of one Linear by other programs on one thread: the peers of `cargo bench --bench prune`.

    python prune_layer.py FILE [--wanda-repo DIR] [--sparsegpt-repo DIR]

FILE is a safetensors file with `weight` [out, in] and `hessian` [in, in], both f32; the strength of an input is taken from
the Hessian's diagonal. First prints the names of what it can run, as a JSON list. Then for every line of standard input,
`NAME OUT`, runs that once, writes the pruned `weight` to the safetensors file OUT (`-` for none), and prints the CPU
seconds it took. Names are `PEER/METHOD/AMOUNT`: `llmcompressor/sparsegpt/2:4`.

* llm-compressor's `sparsify_weight` of SparseGPT and of Wanda, and its unstructured mask of magnitudes.
* locuslab/wanda's `prune_magnitude` and `prune_wanda`, from a checkout.
* IST-DASLab/sparsegpt's `fasterprune`, from a checkout.

    pip install llmcompressor==0.14.0.1
"""
import argparse
import contextlib
import io
import json
import os
import sys
import time
import types

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file, save_file

BLOCK, DAMP = 128, 0.01


def linear(weight: torch.Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float32, device="meta")
    layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return layer


def removed(amount: str) -> tuple[float, int, int]:
    """Sparsity, and of n:m what the scripts call n: how many go."""
    if ":" not in amount:
        return float(amount), 0, 0
    keep, of = (int(part) for part in amount.split(":"))
    return 1 - keep / of, of - keep, of


def llmcompressor_sparsegpt(weight, hessian, amount):
    from llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify import sparsify_weight

    sparsity, n, m = removed(amount)
    module, h = linear(weight), hessian.clone()
    start = time.process_time()
    _, pruned = sparsify_weight(module, {module: h}, sparsity, n, m, BLOCK, DAMP, False)
    return pruned, time.process_time() - start


def llmcompressor_wanda(weight, hessian, amount):
    from llmcompressor.modifiers.pruning.wanda.wanda_sparsify import sparsify_weight

    sparsity, n, m = removed(amount)
    module, squares = linear(weight), hessian.diagonal().clone()
    start = time.process_time()
    pruned = sparsify_weight(module, {module: squares}, sparsity, n, m)
    return pruned, time.process_time() - start


def llmcompressor_magnitude(weight, _, amount):
    from llmcompressor.modifiers.pruning.utils.pytorch.mask_factory import PruningMaskCreatorArgs, PruningMaskFactory

    create = PruningMaskFactory.create_mask_creator("unstructured")
    parameter = torch.nn.Parameter(weight.clone(), requires_grad=False)
    start = time.process_time()
    mask = create(PruningMaskCreatorArgs(parameter=parameter, sparsity=float(amount), scores=parameter.data.abs()))
    parameter.data.mul_(mask)
    return parameter.data, time.process_time() - start


class Block(torch.nn.Module):
    """A decoder block that is one Linear."""

    def __init__(self, weight):
        super().__init__()
        self.proj = linear(weight)

    def forward(self, x, **_):
        return (self.proj(x),)


def locuslab(repo: str, method: str):
    sys.modules.setdefault("datasets", types.SimpleNamespace(load_dataset=None))
    sys.path.insert(0, repo)
    from lib import prune

    torch.Tensor.cuda = lambda self, *_, **__: self  # it calls this whatever the device

    def run(weight, hessian, amount):
        sparsity, n, m = removed(amount)
        block = Block(weight)
        config = types.SimpleNamespace(use_cache=False)
        layers = types.SimpleNamespace(layers=[block])
        model = types.SimpleNamespace(config=config, model=layers, seqlen=1, hf_device_map={})
        args = types.SimpleNamespace(sparsity_ratio=sparsity, nsamples=1, seed=0, use_variant=False)
        # One input whose squares are the diagonal stands for the calibration text.
        x = hessian.diagonal().sqrt()[None, None]
        prune.get_loaders = lambda *_, **__: (None, None)
        prune.prepare_calibration_input = lambda *_: (x.clone(), torch.zeros(1, 1, weight.shape[0]), None, None)
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            if method == "magnitude":
                prune.prune_magnitude(args, model, None, torch.device("cpu"), n, m)
            else:
                prune.prune_wanda(args, model, None, torch.device("cpu"), n, m)
        return block.proj.weight.data, time.process_time() - start

    return run


def ist(repo: str):
    sys.path.insert(0, repo)
    import sparsegpt

    torch.cuda.synchronize = lambda *_: None  # it calls this on the CPU too

    def run(weight, hessian, amount):
        sparsity, n, m = removed(amount)
        layer = linear(weight)
        solver = sparsegpt.SparseGPT(layer)
        solver.H = hessian.clone()
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            solver.fasterprune(sparsity, n, m, BLOCK, DAMP)
        return layer.weight.data, time.process_time() - start

    return run


def peers(wanda_repo: str | None, sparsegpt_repo: str | None) -> dict:
    """What can be run, by peer and method; the amounts each takes."""
    both = ["0.5", "2:4"]
    found = {}
    try:
        import llmcompressor  # noqa: F401

        found["llmcompressor/sparsegpt"] = (llmcompressor_sparsegpt, both)
        found["llmcompressor/wanda"] = (llmcompressor_wanda, both)
        found["llmcompressor/magnitude"] = (llmcompressor_magnitude, ["0.5"])
    except ImportError:
        pass
    if wanda_repo:
        found["locuslab/magnitude"] = (locuslab(wanda_repo, "magnitude"), both)
        found["locuslab/wanda"] = (locuslab(wanda_repo, "wanda"), both)
    if sparsegpt_repo:
        found["ist/sparsegpt"] = (ist(sparsegpt_repo), both)
    return found


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("file")
    p.add_argument("--wanda-repo")
    p.add_argument("--sparsegpt-repo")
    a = p.parse_args()
    # What the packages print of themselves goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    data = load_file(a.file)
    weight, hessian = data["weight"].float(), data["hessian"].float()
    known = peers(a.wanda_repo, a.sparsegpt_repo)
    # Imports and one-time set-up stay out of the measurement.
    small = torch.randn(256, 256)
    small_hessian = small @ small.T + torch.eye(256)
    for run, amounts in known.values():
        run(torch.randn(64, 256), small_hessian, amounts[0])
    names = [f"{name}/{amount}" for name, (_, amounts) in known.items() for amount in amounts]
    print(json.dumps(names), file=answers, flush=True)
    for line in sys.stdin:
        name, out = line.split()
        peer, amount = name.rsplit("/", 1)
        pruned, seconds = known[peer][0](weight, hessian, amount)
        if out != "-":
            save_file({"weight": pruned.contiguous()}, out)
        print(seconds, file=answers, flush=True)


if __name__ == "__main__":
    main()
