#!/usr/bin/env python3
"""The tables of docs/lottery.md from what an experiment left:

    docs/lottery_table.py FOLDER
"""
import json
import sys
from collections import Counter
from pathlib import Path

from markdown_table import table

TICKETS = ("before", "after")

SIGNS = str.maketrans("-", "−")


def signed(value):
    return f"{value:+.2f}".translate(SIGNS)


def told(spread):
    if spread["interval"] is None:
        return f"{signed(spread['mean'])} [one seed]"
    low, high = spread["interval"]
    return f"{signed(spread['mean'])} [{signed(low)}, {signed(high)}]"


def nets(arm):
    """Allocations an arm stands for, with how often; other arms name one net."""
    counts = Counter(name for seed in arm["arms"] for name in seed)
    if not all(name == "dense" or name.replace("-", "").isdigit() for name in counts):
        return ""
    return ", ".join(name if count == 1 else f"{name} ×{count}" for name, count in sorted(counts.items(), key=lambda x: (-x[1], x[0])))


def gate(found):
    dense, shallow = found["dense_accuracy"], found["shallow_accuracy"]
    print(f"**{found['net']}**, {found['dense']} against {found['shallow']}: {told(found['depth_gain'])}\n")
    seeds = zip(dense["values"], shallow["values"], found["depth_gain"]["values"])
    table(
        ["seed", found["dense"], found["shallow"], "difference"],
        [[str(at + 1), f"{a:.2f}", f"{b:.2f}", signed(c)] for at, (a, b, c) in enumerate(seeds)],
    )


def setting(tried, costs):
    took = {one["name"]: one for one in costs["arms"] if one["setting"] == tried["name"]}

    def row(arm):
        own = arm["name"] == "dense"
        fgsm = min((one for one in arm["attacks"] if one["steps"] == 1), key=lambda one: abs(one["epsilon"] - 2))
        time = took.get(arm["name"])
        return [
            arm["name"],
            nets(arm),
            f"{arm['accuracy']['mean']:.2f}",
            "" if own else told(arm["difference"]),
            "" if own else f"{arm['plus']}/{arm['apart']}",
            "" if own else arm["verdict"] if arm["kind"] not in TICKETS or not arm["vacuous"] else f"vacuous ({arm['verdict']})",
            f"{arm['multiply_adds'] / 1e6:.2f}",
            f"{time['time_ratio']:.2f}" if time and time["time_ratio"] is not None else "",
            f"{arm['corrupted'][0]['mean']:.1f}" if own else told(arm["corrupted"][1]),
            f"{arm['lost'][0]['mean']:.1f}" if own else told(arm["lost"][1]),
            f"{fgsm['given_clean']:.1f}" if own else told(fgsm["given_clean_difference"]),
        ]

    print(f"**{tried['name']}**, controls of `{tried['lead']}`\n")
    head = ["arm", "nets", "accuracy %", "to dense, points", "(+)", "verdict", "M MACs", "time", "corrupted", "lost to it", "FGSM 2/255"]
    table(head, [row(arm) for arm in [tried["dense"], *tried["compared"]]])
    duels = [
        [duel["name"], duel["against"], told(duel["difference"]), f"{duel['plus']}/{duel['apart']}", duel["verdict"]]
        for duel in tried["duels"]
    ]
    table(["arm", "against", "points", "(+)", "verdict"], duels)


def choosing(costs):
    rows = [
        [one["setting"], one["criterion"], f"{one['cpu_seconds']:.1f}", "never" if one["break_even"] is None else f"{one['break_even']:.2f}"]
        for one in costs["searches"]
    ]
    table(["setting", "criterion", "CPU s", "paid for after trainings"], rows)


def main():
    folder = Path(sys.argv[1])
    report, costs = (json.loads((folder / name).read_text()) for name in ("lottery.json", "costs.json"))
    for found in report["gates"]:
        gate(found)
    for tried in report["settings"]:
        setting(tried, costs)
    choosing(costs)
    distinct = {(tried["net"], str(arm["arms"])): arm["verdict"] for tried in report["settings"] for arm in tried["compared"]}
    hours = costs["cpu_seconds"] / 3600
    print(f"{len(report['trainings'])} trainings, {hours:.1f} CPU hours; {len(distinct)} arms of other nets: {dict(Counter(distinct.values()))}")


if __name__ == "__main__":
    main()
