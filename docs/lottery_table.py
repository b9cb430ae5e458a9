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

# Points to the dense net that the paper prints (tables 2 and 3), by net, blocks removed, and arm.
PAPER = {
    **{("resnet32", p, "snip"): figure for p, figure in [(1, "+.08"), (2, ".00"), (3, "−.50"), (4, "−.53"), (5, "−1.00")]},
    **{("resnet32", p, "grasp"): figure for p, figure in [(1, "+.40"), (2, "+.72"), (3, "+.34"), (4, "+.41"), (5, "+.12")]},
    ("resnet32", 1, "filters by snip, equal count"): "−.79",
}

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


def grouped(arms):
    """Arms that came to the same nets, together."""
    groups = {}
    for arm in arms:
        groups.setdefault(str(arm["arms"]), []).append(arm)
    return groups.values()


def setting(tried, costs):
    took = {one["name"]: one for one in costs["arms"] if one["setting"] == tried["name"]}
    same = {arm["name"]: group for group in grouped(tried["compared"]) for arm in group}
    groups = [[tried["dense"]], *grouped(tried["compared"])]

    def name(group):
        return " = ".join(arm["name"] for arm in group)

    def verdict(arm):
        return f"vacuous ({arm['verdict']})" if arm["kind"] in TICKETS and arm["vacuous"] else arm["verdict"]

    def paper(group):
        said = [PAPER.get((tried["net"], tried["removed"], arm["name"])) for arm in group]
        return ", ".join(figure for figure in said if figure)

    def accuracy(group):
        arm, time = group[0], took.get(group[0]["name"])
        own = arm["name"] == "dense"
        return [
            name(group),
            nets(arm),
            f"{arm['accuracy']['mean']:.2f}",
            "" if own else told(arm["difference"]),
            "" if own else f"{arm['plus']}/{arm['apart']}",
            "" if own else verdict(arm),
            paper(group),
            f"{arm['multiply_adds'] / 1e6:.2f}",
            f"{time['time_ratio']:.2f}" if time and time["time_ratio"] is not None else "",
        ]

    def robustness(group):
        arm = group[0]
        own = arm["name"] == "dense"
        attack = lambda steps: min((one for one in arm["attacks"] if (one["steps"] == 1) == (steps == 1)), key=lambda one: abs(one["epsilon"] - 2))
        harm = lambda one: f"{one['given_clean']:.1f}" if own else told(one["given_clean_difference"])
        return [
            name(group),
            f"{arm['corrupted'][0]['mean']:.1f}" if own else told(arm["corrupted"][1]),
            f"{arm['lost'][0]['mean']:.1f}" if own else told(arm["lost"][1]),
            "100" if own else f"{arm['mce']['mean']:.1f} [{arm['mce']['interval'][0]:.1f}, {arm['mce']['interval'][1]:.1f}]",
            harm(attack(1)),
            harm(attack(10)),
        ]

    print(f"**{tried['name']}**, controls of `{tried['lead']}`\n")
    head = ["arm", "nets", "accuracy %", "to dense, points", "(+)", "verdict", "paper", "M MACs", "time"]
    table(head, [accuracy(group) for group in groups])
    head = ["arm", "corrupted", "lost to it", "mCE", "FGSM 2/255", "PGD-10 2/255"]
    table(head, [robustness(group) for group in groups])
    duels = {}
    for duel in tried["duels"]:
        key = (name(same.get(duel["name"], [duel])), name(same.get(duel["against"], [{"name": duel["against"]}])))
        duels[key] = [told(duel["difference"]), f"{duel['plus']}/{duel['apart']}", duel["verdict"]]
    table(["arm", "against", "points", "(+)", "verdict"], [[*key, *rest] for key, rest in duels.items()])


def allocations(folder):
    """Accuracy of each allocation of first blocks less the dense net's, over the seeds for which it was trained."""
    right = {}
    for line in (folder / "runs.jsonl").read_text().splitlines():
        run = json.loads(line)
        right.setdefault((run["job"]["net"], run["job"]["arm"]), {})[run["job"]["seed"]] = 100 * run["right"] / run["images"]
    rows = []
    for (net, arm), seeds in sorted(right.items()):
        if arm.replace("-", "").isdigit():
            apart = [value - right[net, "dense"][seed] for seed, value in seeds.items()]
            rows.append((net, -sum(map(int, arm.split("-"))), arm, [signed(one) for one in apart], sum(apart) / len(apart)))
    table(["net", "blocks a stage", "seeds", "mean"], [[net, arm, ", ".join(seeds), signed(mean)] for net, _, arm, seeds, mean in sorted(rows)])


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
    allocations(folder)
    choosing(costs)
    distinct = {(tried["net"], str(arm["arms"])): arm["verdict"] for tried in report["settings"] for arm in tried["compared"]}
    hours = costs["cpu_seconds"] / 3600
    print(f"{len(report['trainings'])} trainings, {hours:.1f} CPU hours; {len(distinct)} arms of other nets: {dict(Counter(distinct.values()))}")


if __name__ == "__main__":
    main()
