"""A model is scored on MUSE: its prompts, its ROUGE, its attacks, and its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, AutoTokenizer

from ofmu.evaluator import evaluate
from ofmu.models.config import ScratchModelConfig
from ofmu.models.language import save_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.run_config import UnlearnConfig

TEXTS = [f"The text number {number} says that Ann wrote a book about snow in 19{number:02d}." for number in range(12)]
QUESTIONS = [{"question": f"When did Ann write book {number}?", "answer": f"19{number:02d}"} for number in range(3)]
PARTS: dict[str, list[dict[str, str]]] = {
    "raw/forget": [{"text": text} for text in TEXTS[:4]],
    "raw/retain1": [{"text": text} for text in TEXTS[4:8]],
    "privleak/forget": [{"text": text} for text in TEXTS[:4]],
    "privleak/holdout": [{"text": text} for text in TEXTS[8:]],
    "verbmem/forget": [{"prompt": text[:30], "gt": text[30:]} for text in TEXTS[:3]],
    "knowmem/forget_qa": QUESTIONS,
    "knowmem/retain_qa": QUESTIONS,
    "knowmem/forget_qa_icl": [{"question": "Who wrote?", "answer": "Ann"}],
    "knowmem/retain_qa_icl": [{"question": "What?", "answer": "A book"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and the parts of MUSE."""
    folder = tmp_path_factory.mktemp("muse")
    for part, records in PARTS.items():
        path = folder / "data" / f"{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    shape = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
    tokenizer = train_tokenizer([*TEXTS, "Question: Who?\nAnswer: Ann"] * 2, 300)
    for seed, name in enumerate(("model", "retrained")):
        save_model(build_model(shape, tokenizer, seed=seed), tokenizer, folder / name)
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    config = UnlearnConfig.model_validate(
        {
            "data": {"source": "muse", "path": str(folder / "data")},
            "evaluation": {"membership": True, "max_new_tokens": 3, "batch_size": 4},
        }
    )
    return evaluate(
        folder / "model", config, reference=folder / "retrained", output_dir=folder / "out", export="open-unlearning"
    )


def test_the_four_numbers_of_muse(report: dict[str, Any]) -> None:
    for name in ("verbatim_memorization", "forget_knowledge_memorization", "retain_knowledge_memorization"):
        assert 0 <= report["metrics"][name] <= 1
    assert report["metrics"]["privacy_leakage"] is not None
    assert report["metrics"]["membership_gradient_norm"] is not None


@pytest.mark.slow
def test_answers_are_those_of_transformers_on_the_prompts_of_muse(folder: Path, report: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    scores = json.loads((folder / "out" / "scores.json").read_text())["sets"]
    prompts = {
        "forget": ("{}", 128),
        "forget_knowledge": ("Question: Who wrote?\nAnswer: Ann\n\nQuestion: {}\nAnswer:", 32),
        "retain_knowledge": ("Question: What?\nAnswer: A book\n\nQuestion: {}\nAnswer:", 32),
    }
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for name, (template, new_tokens) in prompts.items():
        for row in scores[name]:
            ids = tokenizer(template.format(row["question"]), return_tensors="pt")
            with torch.no_grad():
                found = model.generate(**ids, max_new_tokens=new_tokens, do_sample=False)
            text = tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            assert row["generated"].strip() == text.strip()
            expected = scorer.score(row["ground_truth"], row["generated"])["rougeL"].fmeasure
            assert row["rouge_f1"] == pytest.approx(expected, abs=1e-12)


def test_the_log_is_that_of_muse(folder: Path, report: dict[str, Any]) -> None:
    log = json.loads((folder / "out" / "MUSE_EVAL.json").read_text())
    assert report["not_exported"] == {}
    assert log["forget_verbmem_ROUGE"]["agg_value"] == pytest.approx(report["metrics"]["verbatim_memorization"])
    assert len(log["mia_min_k"]["holdout"]["value_by_index"]) == 4
    again = evaluate(folder / "out" / "MUSE_EVAL.json")["metrics"]
    for name in ("verbatim_memorization", "retain_knowledge_memorization", "membership_zlib", "membership_min_k_plus"):
        assert again[name] == pytest.approx(report["metrics"][name])


def test_without_attacks_their_texts_are_not_scored(folder: Path) -> None:
    config = UnlearnConfig.model_validate(
        {"data": {"source": "muse", "path": str(folder / "data")}, "evaluation": {"rouge": False}}
    )
    evaluate(folder / "model", config, output_dir=folder / "plain")
    assert "members" not in json.loads((folder / "plain" / "scores.json").read_text())["sets"]
