"""Random labels: every label is wrong and drawn anew at each step."""

from __future__ import annotations

from collections import Counter

import torch
from torch.nn.functional import cross_entropy

from ofmu.testing import tiny_image_task
from vision_case import Case, labels_of, plain_logits

CPU = torch.device("cpu")


def test_the_direction_is_the_gradient_of_both_cross_entropies() -> None:
    case = Case("randomlabels", forget_weight=0.5, retain_weight=2.0)
    forget, retain = case.task.forget_rows, case.task.retain_rows
    drawn = case.method._forget_sampler.draw()
    case.method._forget_sampler.position = 0
    labels = case.method.forget_loss(drawn).labels(forget, CPU)

    def loss(model):
        wrong = cross_entropy(plain_logits(model, forget), labels)
        return 0.5 * wrong + 2 * cross_entropy(plain_logits(model, retain), labels_of(retain))

    assert torch.allclose(case.flat(case.method.direction().vector), case.gradient(loss), rtol=1e-9, atol=1e-12)


def test_labels_are_all_classes_but_the_true_one() -> None:
    task = tiny_image_task(300, 3)
    case = Case("randomlabels", task)
    labels = case.method.forget_loss(task.forget_rows).labels(task.forget_rows, CPU)
    pairs = Counter(zip(labels_of(task.forget_rows).tolist(), labels.tolist(), strict=True))
    assert set(pairs) == {(y, drawn) for y in range(3) for drawn in range(3) if y != drawn}
    assert min(pairs.values()) > 30


def test_labels_depend_on_the_seed_and_the_step() -> None:
    cases = [Case("randomlabels", round_steps=1, lr=1e-9, steps=2) for _ in range(2)]
    rows = cases[0].task.forget_rows
    first, second = (case.method.forget_loss(case.task.forget_rows) for case in cases)
    before = first.labels(rows, CPU)
    assert torch.equal(before, second.labels(cases[1].task.forget_rows, CPU))
    next(cases[0].method.rounds())
    assert not torch.equal(before, cases[0].method.forget_loss(rows).labels(rows, CPU))
