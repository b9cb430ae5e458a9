#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tables of docs/probex.md from the records of `scruple probe study -o DIR`.

    python3 docs/probex_table.py DIR/study.json...
"""
import json
import sys


def shown(figure):
    return f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"


for path in sys.argv[1:]:
    record = json.load(open(path))
    parts = {}
    for finding in record["findings"]:
        parts.setdefault((finding["part"], finding["layer"]), []).append(finding)
    for (part, layer), findings in parts.items():
        trees = list(dict.fromkeys(f["tree"] for f in findings))
        rows = dict.fromkeys(f["what"] for f in findings)
        cells = {(f["what"], f["tree"]): f for f in findings}
        print(f"\n**{part}, {layer}**\n")
        print("| | " + " | ".join(trees) + " | parameters |")
        print("|---" * (len(trees) + 2) + "|")
        for what in rows:
            found = [cells.get((what, tree)) for tree in trees]
            count = next((f.get("parameters") for f in found if f and f.get("parameters")), None)
            values = " | ".join(shown(f["accuracy"]) if f else "" for f in found)
            print(f"| {what} | {values} | {count if count else ''} |")
