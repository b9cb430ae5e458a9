#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tables of `docs/curve.md` from the `curve.json` of a sweep.

    curve_table.py DIR/curve.json
"""
import json
import sys

SURE = 0.05
NOTHING = 0.05


def number(x, form):
    text = "–" if x is None else format(x, form)
    return text.replace("-", "−")


def signed(x):
    return "0.0" if abs(x) < NOTHING else number(x, "+.1f")


def change(one):
    if one is None or one["delta"] is None:
        return "–"
    band = one["delta_interval"]
    within = band and abs(band["low"]) < NOTHING and abs(band["high"]) < NOTHING
    sure = one["p_adjusted"] is not None and one["p_adjusted"] < SURE and not within
    text = signed(one["delta"])
    return f"**{text}**" if sure else text


curve = json.load(open(sys.argv[1]))
print("| dimension | items | chance | dense (95 %) | says something about this model |")
print("|---|---|---|---|---|")
for one in curve["dimensions"]:
    band = one["interval"]
    between = f" ({number(band['low'], '.1f')} to {number(band['high'], '.1f')})" if band else ""
    informative = {True: "yes", False: "no: its interval covers chance", None: "no chance level"}[one["informative"]]
    print(
        f"| {one['name']} | {one['items']} | {number(one['chance'], '.1f')} | {number(one['score'], '.1f')}{between} | "
        f"{informative} |"
    )
names = [one["name"] for one in curve["dimensions"]]
print("\n| | bits | zeros | perplexity | " + " | ".join(names) + " | mean \\|Δ\\| |")
print("|---" * (len(names) + 5) + "|")
dense = curve["dense"]
print(
    f"| dense | {dense['bits_per_weight']:.2f} | | {number(dense['perplexity'], '.2f')} | "
    + " | ".join(number(one["score"], ".1f") for one in curve["dimensions"])
    + " | |"
)
for point in curve["points"]:
    found = {one["name"]: one for one in point["dimensions"]}
    zeros = f"{100 * point['sparsity']:.0f} %" if point["sparsity"] else ""
    perplexity = number(point["perplexity"], ",.0f" if (point["perplexity"] or 0) >= 1000 else ".2f")
    print(
        f"| {point['name']} | {point['bits_per_weight']:.2f} | {zeros} | {perplexity} | "
        + " | ".join(change(found.get(name)) for name in names)
        + f" | {number(point['mean_absolute'], '.1f')} |"
    )
if curve["settings"]:
    print("\nStandard deviation between calibration seeds:\n")
    print("| | seeds | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 2) + "|")
    for one in curve["settings"]:
        spread = {each["name"]: each for each in one["dimensions"]}
        cells = [number(spread[name]["deviation"], ".1f") if name in spread else "–" for name in names]
        print(f"| {one['name']} | {len(one['points'])} | " + " | ".join(cells) + " |")
print()
for line in curve["verdict"]:
    print(f"> {line}\n>")
