"""Task files of lm-eval over local data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

NAMES = ("Ann", "Bo", "Cy", "Di", "Ed", "Flo", "Gus")
TASKS = ("local_choice", "local_answer", "local_text")


def write_tasks(folder: Path) -> Path:
    """Write a folder of three tasks, which need choices, generated text and whole texts. Return it."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "question": f"Who wrote book {index} {'of the long list ' * (index % 3)}by the sea?",
            "choices": [f"{name} wrote it.", f"{NAMES[index - 1]} wrote it at home.", "Nobody did."],
            "label": index % 3,
            "answer": f"{name} wrote it.",
            "text": f"{name} lives in a town by the sea. " * (1 + 9 * (index % 2)),
        }
        for index, name in enumerate(NAMES)
    ]
    data = folder / "data"
    data.mkdir(exist_ok=True)
    (data / "test.json").write_text("\n".join(map(json.dumps, rows)))
    common: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data / "test.json")}},
        "test_split": "test",
        "metadata": {"version": 2.0},
    }
    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm")],
    }
    answer = {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": name} for name in ("exact_match", "chrf")],
    }
    text = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity")],
    }
    for name, own in zip(TASKS, (choice, answer, text), strict=True):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **own}))
    return folder
