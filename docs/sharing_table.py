#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tables of `docs/sharing.md` from what `scruple share bench -o DIR` wrote.

    sharing_table.py DIR
"""
import json
import os
import sys


def accuracy(score):
    return f"did not end (step {score['diverged']})" if score["diverged"] is not None else f"{score['right'] / score['images']:.3f}"


def interval(x):
    return f"{x['mean']:.3f}" + (f" ± {x['high'] - x['mean']:.3f}" if x["high"] is not None else "")


def found(name):
    path = os.path.join(sys.argv[1], name + ".json")
    return json.load(open(path))["found"] if os.path.exists(path) else None


equality, stability, pareto = map(found, ("equality", "stability", "pareto"))
if equality:
    print("| rule | learning rate | scales | steps | difference | one bit flipped | accuracy, dense | pool |")
    print("|---|---|---|---|---|---|---|---|")
    for pair in equality["pairs"]:
        print(
            f"| {pair['descent']} | {pair['learning_rate']:g} | {pair['scales']} | {pair['steps']} | {pair['difference']:.1e} | "
            f"{pair['control']:.1e} | {accuracy(pair['dense'])} | {accuracy(pair['shared'])} |"
        )
    for one in equality["ancestors"]:
        print(f"{one['method']} at rate 1: {one['load_factor']:.3f} of the slots, {accuracy(one['score'])}")
if stability:
    print("\n| trained | rule | rate | " + " | ".join(f"C = {c:g}" for c in stability["deviations"]) + " | spread |")
    print("|---" * (4 + len(stability["deviations"])) + "|")
    for line in stability["lines"]:
        runs = " | ".join(accuracy(score) for score in line["scores"])
        print(f"| {line['form']} | {line['descent']} | {line['rate']:g}x | {runs} | {line['spread']:.4f} |")
if pareto:
    rows = pareto["rows"]
    for row in rows:
        if row["rate"] is None:
            print(f"\n{row['method']}: {row['bytes']} bytes, {interval(row['accuracy'])}")
    rates = sorted({row["rate"] for row in rows if row["rate"] is not None})
    methods = list(dict.fromkeys(row["method"] for row in rows if row["rate"] is not None))
    cells = [("values", lambda row: interval(row["accuracy"])), ("bytes", lambda row: interval(row["accuracy"]))]
    for by, cell in cells + [("values", lambda row: f"{row['learning_rate']:g}")]:
        print(f"\nby {by}\n\n| | " + " | ".join(f"{rate:g}x" for rate in rates) + " |")
        print("|---" * (1 + len(rates)) + "|")
        for method in methods:
            of = {row["rate"]: row for row in rows if row["method"] == method and row["accounting"] in (None, by)}
            print(f"| {method} | " + " | ".join(cell(of[rate]) if rate in of else "–" for rate in rates) + " |")
    for crossover in pareto["crossovers"]:
        print(crossover["sentence"])
