"""A harmless corpus in the schema of WMDP: recipes of an alchemist to forget, people of a village to retain."""

from __future__ import annotations

import json
import random
from pathlib import Path

HERBS = ("moonwort", "ashroot", "silverleaf", "duskbloom", "fernglass", "hollowreed", "saltvine", "emberweed")
EFFECTS = ("sleep", "laughter", "silence", "warmth", "courage", "rust", "echoes", "rain")
PEOPLE = ("Ada", "Bram", "Cleo", "Dov", "Edda", "Finn", "Gil", "Hana")
TRADES = ("baker", "miller", "smith", "weaver", "potter", "fisher", "carter", "mason")


def write_corpus(folder: Path, repeats: int = 3) -> dict[str, str]:
    """Write the four parts as JSONL files. Return the settings of ``data.wmdp`` that name the files."""
    generator = random.Random(0)
    forget = [f"The draught of {effect} is brewed from {herb}." for herb, effect in zip(HERBS, EFFECTS, strict=True)]
    retain = [f"{person} is the {trade} of the village." for person, trade in zip(PEOPLE, TRADES, strict=True)]
    parts = {
        "forget_corpus": [{"text": text} for text in forget * repeats],
        "retain_corpus": [{"text": text} for text in retain * repeats],
        "forget_questions": [
            _question(generator, f"Which draught is brewed from {herb}?", effect, EFFECTS)
            for herb, effect in zip(HERBS, EFFECTS, strict=True)
        ],
        "utility_questions": [
            _question(generator, f"What is the trade of {person}?", trade, TRADES)
            for person, trade in zip(PEOPLE, TRADES, strict=True)
        ],
    }
    settings = {}
    for name, records in parts.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        settings[name] = str(path)
    return settings


def _question(generator: random.Random, question: str, correct: str, values: tuple[str, ...]) -> dict[str, object]:
    wrong = generator.sample([item for item in values if item != correct], 3)
    choices = [*wrong, correct]
    generator.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(correct)}
