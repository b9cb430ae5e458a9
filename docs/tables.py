#!/usr/bin/env python3
"""The tables of methods.md: compresses a model in every way, measures each, and prints the rows.

    docs/tables.py PROGRAM MODEL CALIBRATION TEXT WORK [--encoder] [--n-samples 64] [--seq-len 512] [--max-tokens 16384]

WORK keeps a record for each way, so that a call that was stopped goes on where it was. `--encoder` compares embeddings of the
lines of TEXT instead of predictions.
"""
import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

GROUPS = ["--group-size", "64"]
GPTAQ = ["--param", "asymmetric_calibration=0.25"]

# (name, options)
WAYS = [
    ("RTN 8", ["--method", "rtn", "--bits", "8", *GROUPS]),
    ("FP8, a scale a row", ["--method", "fp8"]),
    ("NF4", ["--method", "nf4"]),
    ("RTN 4", ["--method", "rtn", *GROUPS]),
    ("RTN 4, zero points", ["--method", "rtn", "--asymmetric", *GROUPS]),
    ("HQQ 4, zero points", ["--method", "hqq", "--asymmetric", *GROUPS]),
    ("AWQ 4, zero points", ["--method", "awq", *GROUPS]),
    ("GPTQ 4", ["--method", "gptq", *GROUPS]),
    ("GPTQ 4, zero points", ["--method", "gptq", "--asymmetric", *GROUPS]),
    ("GPTAQ 4", ["--method", "gptq", *GPTAQ, *GROUPS]),
    ("GPTQ, widths for 3.5 bits", ["--method", "gptq", "--target-bpw", "3.5", *GROUPS]),
    ("RTN 3", ["--method", "rtn", "--bits", "3", *GROUPS]),
    ("RTN 3, zero points", ["--method", "rtn", "--bits", "3", "--asymmetric", *GROUPS]),
    ("AWQ 3, zero points", ["--method", "awq", "--bits", "3", *GROUPS]),
    ("GPTQ 3", ["--method", "gptq", "--bits", "3", *GROUPS]),
    ("GPTAQ 3", ["--method", "gptq", "--bits", "3", *GPTAQ, *GROUPS]),
    ("GPTQ 2", ["--method", "gptq", "--bits", "2", *GROUPS]),
    ("magnitude 50 %", ["--method", "magnitude"]),
    ("Wanda 50 %", ["--method", "wanda"]),
    ("SparseGPT 50 %", ["--method", "sparsegpt"]),
    ("magnitude 2:4", ["--method", "magnitude", "--pattern", "2:4"]),
    ("Wanda 2:4", ["--method", "wanda", "--pattern", "2:4"]),
    ("SparseGPT 2:4", ["--method", "sparsegpt", "--pattern", "2:4"]),
]


def measure(arguments, options, record):
    out = arguments.work / "model"
    if out.exists():
        shutil.rmtree(out)
    compress = [
        arguments.program, "compress", arguments.model, *options, "--calibration", arguments.calibration,
        "--n-samples", str(arguments.n_samples), "--seq-len", str(arguments.seq_len), "--no-speed", "-o", out,
    ]
    subprocess.run(compress, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    evaluate = [arguments.program, "embed", out, "--against", arguments.model, "--text", arguments.text, "--json"]
    if not arguments.encoder:
        evaluate = [
            arguments.program, "eval", out, "--against", arguments.model, "--dense-cache", arguments.work / "dense",
            "--text", arguments.text, "--max-tokens", str(arguments.max_tokens), "--json",
        ]
    done = subprocess.run(evaluate, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    run = json.loads((out / "run.json").read_text())
    provenance = json.loads((out / "scruple.json").read_text())
    record.write_text(json.dumps({"measured": json.loads(done.stdout), "run": run, "bpw": provenance["bits_per_weight"]}))


def figure(value, digits):
    return f"{value['value']:.{digits}f} ± {value['stderr']:.{digits}f}"


def row(name, record, encoder):
    measured, run = record["measured"], record["run"]
    cost = f"{sum(run['phases'].values()):.0f} | {run['compress_peak_rss_bytes'] / 1e6:.0f}"
    if encoder:
        return f"| {name} | {record['bpw']:.2f} | {figure(measured['cosine'], 4)} | {figure(measured['overlap'], 3)} | {cost} |"
    against = measured["against"]
    perplexity = f"{measured['perplexity']:.2f} ± {measured['perplexity_stderr']:.2f}"
    distance = f"{figure(against['nll_increase'], 3)} | {figure(against['kl_mean'], 4)}"
    return f"| {name} | {record['bpw']:.2f} | {perplexity} | {distance} | {100 * against['same_top']['value']:.1f} % | {cost} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("program", "model", "calibration", "text", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--encoder", action="store_true")
    parser.add_argument("--n-samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=16384)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for number, (name, options) in enumerate(WAYS):
        record = arguments.work / f"{number:02}.json"
        if not record.exists():
            measure(arguments, options, record)
        print(row(name, json.loads(record.read_text()), arguments.encoder), flush=True)


if __name__ == "__main__":
    sys.exit(main())
