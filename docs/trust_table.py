#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""The rows of `docs/trust.md` from what `scruple trust MODEL --against DENSE -o DIR` wrote.

    trust_table.py DIR/trust.json
"""
import json
import sys


def interval(x):
    return f"{x['low']:+.1f} to {x['high']:+.1f}" if x else "one cluster"


def number(x, form):
    return "–" if x is None else format(x, form)


record = json.load(open(sys.argv[1]))
print("| dimension | items | chance | dense | compressed | Δ (95 %) | p, Holm | lost / gained | KL | can find | says something |")
print("|---|---|---|---|---|---|---|---|---|---|---|")
for one in record["dimensions"]:
    informative = {True: "yes", False: "no", None: "no chance level"}[one["informative"]]
    print(
        f"| {one['dimension']} | {one['items']} | {number(one['chance'], '.1f')} | {number(one['dense']['score'], '.1f')} | "
        f"{number(one['other']['score'], '.1f')} | {number(one['delta'], '+.1f')} ({interval(one['interval'])}) | "
        f"{number(one['p_adjusted'], '.3f')} | {one['lost']} / {one['gained']} | {number(one['kl'], '.4f')} | "
        f"{number(one['detectable'], '.1f')} | {informative} |"
    )
