#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Labels of Debian's Tesseract models (`tesseract-ocr-*`): the script a language is written in, and the shape of the network.

    tesseract_labels.py FOLDER > labels.csv        # FOLDER holds the .traineddata files; `scruple` is on the path

Models of one shape were trained alike, so that shapes are the trees that take turns in being left out. `--two` tells Latin from
all others; without it scripts of fewer than four models are `other`.
"""
import json
import subprocess
import sys
from pathlib import Path

SCRIPTS = {
    "arabic": "ara fas pus snd uig urd",
    "cyrillic": "aze_cyrl bel bul kaz kir mkd mon rus srp tat tgk ukr uzb_cyrl",
    "devanagari": "hin mar nep san",
    "han": "chi_sim chi_sim_vert chi_tra chi_tra_vert jpn jpn_vert",
    "other": "amh asm ben bod chr div dzo ell grc guj heb hye iku kan kat kat_old khm kor kor_vert lao mal mya ori pan sin syr "
    "tam tel tha tir yid",
}
OF = {language: script for script, languages in SCRIPTS.items() for language in languages.split()}
# Networks of another layout, four of them, are one tree.
RARE = "64-64-64"


def shape(file):
    run = subprocess.run(["scruple", "inspect", "--json", file], capture_output=True, text=True)
    if run.returncode:
        return None  # `osd` holds no network
    tensors = json.loads(run.stdout)["tensors"]
    sizes = "-".join(str(one["shape"][0]) for one in tensors if one["name"].endswith("gate_ci.weight"))
    return RARE if sizes.startswith(RARE) else sizes


folder = Path([word for word in sys.argv[1:] if not word.startswith("--")][0])
print("model,script,tree")
for file in sorted(folder.glob("*.traineddata")):
    tree = shape(file)
    if tree:
        script = OF.get(file.stem, "latin")
        if "--two" in sys.argv and script != "latin":
            script = "not latin"
        print(f"{file.name},{script},{tree}")
