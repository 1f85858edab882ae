"""Classifiers: their seed, their frozen statistics, and their files as Transformers reads them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from ofmu.errors import ModelError
from ofmu.models.config import ScratchModelConfig
from ofmu.models.language import write_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.testing import tiny_classifier, tiny_images
from ofmu.testing.images import CLASSES, SHAPE, tiny_image_loss
from ofmu.vision.model import build_classifier, freeze_statistics, load_classifier
from ofmu.vision.pixels import Normalisation

CPU = torch.device("cpu")


def test_weights_depend_on_the_seed_only() -> None:
    first = build_classifier(SHAPE, CLASSES, seed=1)
    torch.rand(5)
    again, other = build_classifier(SHAPE, CLASSES, seed=1), build_classifier(SHAPE, CLASSES, seed=2)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.classifier[1].weight, other.classifier[1].weight)


def test_with_frozen_statistics_a_row_does_not_depend_on_other_rows() -> None:
    rows, loss = tiny_images(8, 0), tiny_image_loss()
    model = tiny_classifier().train()
    before = copy.deepcopy(dict(model.named_buffers()))
    together = loss.logits(model, rows, CPU)
    separate = torch.cat([loss.logits(model, [row], CPU) for row in rows])
    assert torch.allclose(together, separate, atol=1e-6)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
    unfrozen = build_classifier(SHAPE, CLASSES, seed=0).train()
    assert not torch.allclose(loss.logits(unfrozen, rows, CPU), loss.logits(unfrozen, rows[:4] * 2, CPU), atol=1e-3)


def test_freezing_changes_no_output_in_evaluation_mode() -> None:
    model = build_classifier(SHAPE, CLASSES, seed=0).eval()
    frozen = copy.deepcopy(model)
    freeze_statistics(frozen)
    rows = tiny_images(4, 0)
    assert torch.equal(tiny_image_loss().logits(model, rows, CPU), tiny_image_loss().logits(frozen, rows, CPU))
    assert list(frozen.state_dict()) == list(model.state_dict())
    assert sum(p.requires_grad for p in frozen.parameters()) == len(list(model.parameters()))


def test_transformers_and_our_loader_read_a_saved_classifier(tmp_path: Path) -> None:
    model, rows = tiny_classifier(), tiny_images(4, 0)
    normalisation = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 16)
    write_model(model, normalisation, tmp_path)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    ours = load_classifier(tmp_path, CLASSES).eval()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[name])
        assert torch.equal(weight, ours.state_dict()[name])
    assert Normalisation.of_model(tmp_path, 16) == normalisation
    with torch.no_grad():
        assert torch.equal(tiny_image_loss().logits(ours, rows, CPU), tiny_image_loss().logits(model.eval(), rows, CPU))


def test_the_processor_of_transformers_makes_the_same_inputs(tmp_path: Path) -> None:
    processing = pytest.importorskip("transformers").AutoImageProcessor
    normalisation = Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 16)
    normalisation.save_pretrained(tmp_path)
    (row,) = tiny_images(1, 0)
    try:
        processor = processing.from_pretrained(tmp_path)
    except ImportError as error:
        pytest.skip(f"a package for Transformers' processors is missing: {error}")
    image = Image.fromarray(row.pixels.permute(1, 2, 0).numpy())
    theirs = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"]))
    ours = normalisation.inputs(row.pixels[None].float() / 255)
    assert torch.allclose(ours, theirs.float(), atol=1e-5)


def test_a_new_head_keeps_the_other_weights_and_another_number_of_classes_is_an_error(tmp_path: Path) -> None:
    model = tiny_classifier()
    write_model(model, Normalisation(size=16), tmp_path)
    with pytest.raises(ModelError, match="has 3 classes, and the data has 2"):
        load_classifier(tmp_path, ("a", "b"))
    first, again = (load_classifier(tmp_path, ("a", "b"), new_head_seed=1) for _ in range(2))
    assert first.classifier[1].weight.shape == (2, 8)
    assert torch.equal(first.classifier[1].weight, again.classifier[1].weight)
    stem = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(first.state_dict()[stem], model.state_dict()[stem])


@pytest.mark.slow
def test_weights_that_are_not_whole_are_an_error_and_only_a_new_head_may_be_missing(tmp_path: Path) -> None:
    write_model(tiny_classifier(), Normalisation(size=16), tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    stem, statistics = (
        "resnet.embedder.embedder.convolution.weight",
        "resnet.embedder.embedder.normalization.running_var",
    )
    for name in (stem, statistics):
        for change, words in (
            ({}, f"lacks weight '{name}'"),
            ({name: whole[name][:1].clone()}, f"has another shape for weight '{name}'"),
            ({name: whole[name] * float("nan")}, f"'{name}' .* is NaN or infinite"),
        ):
            save_file({**{key: whole[key] for key in whole if key != name}, **change}, file, metadata={"format": "pt"})
            for seed in (None, 1):
                with pytest.raises(ModelError, match=words):
                    load_classifier(tmp_path, CLASSES, new_head_seed=seed)
    save_file({key: whole[key] for key in whole if not key.startswith("classifier")}, file, metadata={"format": "pt"})
    assert load_classifier(tmp_path, CLASSES, new_head_seed=1).classifier[1].weight.isfinite().all()
    with pytest.raises(ModelError, match="lacks weight 'classifier"):
        load_classifier(tmp_path, CLASSES)


def test_a_language_model_is_no_classifier(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["some text"], 300)
    shape = ScratchModelConfig(hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, vocab_size=300)
    write_model(build_model(shape, tokenizer, seed=0), tokenizer, tmp_path)
    for seed in (None, 0):
        with pytest.raises(ModelError, match="is a llama, no image classifier"):
            load_classifier(tmp_path, CLASSES, new_head_seed=seed)


def test_an_invalid_normalisation_is_named(tmp_path: Path) -> None:
    assert Normalisation.of_model(tmp_path, 8) == Normalisation(size=8)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    with pytest.raises(ModelError, match="fix its image_mean and image_std"):
        Normalisation.of_model(tmp_path, 8)
