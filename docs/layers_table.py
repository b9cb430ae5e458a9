#!/usr/bin/env python3
"""The tables of docs/layers.md from a search's record:

    docs/layers_table.py RUN/search.json
"""
import json
import sys

from markdown_table import table

NAMES = {
    "influence": "block influence",
    "angular-window": "angular window",
    "last": "last k",
    "last-but-one": "last but one",
    "uniform": "evenly spread",
}
INTERVALS = ("greedy", "beam:3", "window", "influence", "angular-window")


def number(value):
    """One decimal, whole thousands, or a power of ten."""
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}" if value < 1e5 else f"{value:.0e}".replace("e+0", "e")


def layers(removed):
    """Runs of layers as 13–14, 17."""
    parts = []
    for layer in removed:
        if parts and parts[-1][1] == layer - 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in parts)


def main():
    record = json.load(open(sys.argv[1]))
    curves = {curve["method"]: {point["k"]: point for point in curve["points"]} for curve in record["curves"]}
    counts = sorted(curves["greedy"])
    randoms = [name for name in curves if name.startswith("random-")]

    def searched(name, k):
        point = curves[name][k]
        return f"{point['loss']:.3f} ± {point['stderr']:.3f}: {layers(point['removed'])}"

    table(
        ["k", "greedy", "beam of 3", "window"],
        [[str(k), *(searched(name, k) for name in ("greedy", "beam:3", "window"))] for k in counts],
    )

    def held(name, k):
        measured = curves[name][k]["holdout"]
        low, high = measured["perplexity_interval"]
        interval = f" ({low:.1f}–{high:.1f})" if name in INTERVALS else ""
        return number(measured["perplexity"]) + interval

    shown = [*INTERVALS, "uniform", "last", "last-but-one"]
    rows = []
    for k in counts:
        drawn = sorted(curves[name][k]["holdout"]["perplexity"] for name in randoms)
        rows.append([str(k), *(held(name, k) for name in shown), f"{number(drawn[0])} to {number(drawn[-1])}"])
    table(["k", *(NAMES.get(name, name) for name in shown), f"{len(randoms)} at random"], rows)

    def canary(name, k, which):
        figure = curves[name][k]["holdout"]["canaries"][which]
        return f"{100 * figure['value']:.0f}"

    rows = []
    for k in counts:
        kl = curves["greedy"][k]["holdout"]["kl"]
        cells = [f"{canary(name, k, which)}" for which in ("sums", "brackets") for name in ("greedy", "influence", "uniform")]
        rows.append([str(k), f"{kl['value']:.3f} ± {kl['stderr']:.3f}", *cells])
    table(
        ["k", "KL, greedy", *(f"{which}, {name}" for which in ("sums", "brackets") for name in ("greedy", "influence", "spread"))],
        rows,
    )
    dense = record["dense"]
    print("dense", dense["perplexity"], dense["perplexity_interval"], dense["canaries"])
    print("sets", record["sets_scored"], "work", record["work"], "one by one", record["work_one_by_one"])


if __name__ == "__main__":
    main()
