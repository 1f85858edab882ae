from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    MambaConfig,
    MptConfig,
)

from ofmu.data.encoding import load_tokenizer
from ofmu.errors import ModelError, StorageError
from ofmu.models.config import ScratchModelConfig
from ofmu.models.hub import local_directory
from ofmu.models.language import load_model, save_model
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.models.weight_stream import WeightStream

SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, vocab_size=300)
TEXTS = ["Question: Where was Ada born?\nAnswer: Ada was born in Geneva."] * 3


def test_the_tokenizer_decodes_to_any_encoded_text_and_starts_with_bos(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 300).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, " leading space", "¿Dónde? 日本 🙂", "a , b .", ""]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert len(tokenizer) <= 300
    assert len(tokenizer(TEXTS[0])["input_ids"]) < len(TEXTS[0]) / 1.5


def test_a_vocabulary_without_room_for_the_bytes_is_an_error() -> None:
    with pytest.raises(ModelError, match="raise it to at least 259"):
        train_tokenizer(TEXTS, 100)


def test_weights_depend_on_the_seed_only() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (build_model(SHAPE, tokenizer, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_a_saved_model_loads_unchanged_by_our_loader_and_by_transformers(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    model = build_model(SHAPE, tokenizer, seed=0)
    directory = save_model(model, tokenizer, tmp_path / "runs" / "model")
    for loaded in (
        load_model(directory),
        load_model(str(directory), "eager"),
        AutoModelForCausalLM.from_pretrained(directory),
    ):
        assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert load_tokenizer(str(directory))(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]
    assert list(directory.parent.iterdir()) == [directory]


def test_saving_replaces_an_older_model_and_takes_given_weights(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    model = build_model(SHAPE, tokenizer, seed=0)
    directory = save_model(model, tokenizer, tmp_path / "model")
    (directory / "stale.json").write_text("{}")
    weights = {name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()}
    save_model(model, tokenizer, directory, weights=weights)
    assert not (directory / "stale.json").exists()
    assert float(load_model(directory).state_dict()["lm_head.weight"].min()) == 0.5
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_every_file_of_a_saved_model_has_the_mode_of_the_umask(
    tmp_path: Path, umask: int, file_mode: int, folder_mode: int
) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    model = build_model(SHAPE, tokenizer, seed=0)
    streamed = WeightStream(
        {name: value.shape for name, value in model.state_dict().items()},
        torch.float32,
        iter(model.state_dict().items()),
    )
    before = os.umask(umask)
    try:
        directories = [
            save_model(model, tokenizer, tmp_path / "whole"),
            save_model(model, tokenizer, tmp_path / "streamed", weights=streamed),
        ]
    finally:
        os.umask(before)
    for directory in directories:
        assert (directory / "model.safetensors").is_file()
        assert {oct(path.stat().st_mode & 0o777) for path in directory.iterdir()} == {oct(file_mode)}
        assert oct(directory.stat().st_mode & 0o777) == oct(folder_mode)


def test_dropout_is_off(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=50, n_positions=16)
    assert config.resid_pdrop > 0
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = load_model(tmp_path).train()
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


def test_a_directory_that_is_not_a_model_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model directory"):
        load_model(tmp_path / "gone")
    with pytest.raises(ModelError, match="There is no model directory"):
        local_directory(str(tmp_path / "gone"))
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match=r"no \*\.safetensors weights"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(ModelError, match=r"rows\.jsonl is a file and no model: name a directory with config\.json and"):
        load_model(tmp_path / "rows.jsonl")
    with pytest.raises(ModelError, match="is a file: name the directory that holds it"):
        load_model(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "no-such-type"}, "upgrade transformers, or name another model"),
        ({"hidden_size": "wide"}, "Transformers says"),
        ({"num_attention_heads": 0}, "Transformers says"),
        ({"hidden_act": "no_such_function"}, "Transformers says"),
        ({"rope_parameters": {"rope_type": "no_such_type"}}, "Transformers says"),
    ],
)
def test_a_config_that_transformers_refuses_is_one_sentence_with_its_own_words(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    directory = save_model(
        build_model(SHAPE, train_tokenizer(TEXTS, 300), seed=0), train_tokenizer(TEXTS, 300), tmp_path / "m"
    )
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=words) as caught:
        load_model(directory)
    assert "\n" not in str(caught.value)
    assert "save the model again" not in str(caught.value)


SMALL = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}

WITHOUT_SDPA = {
    "gemma2": Gemma2Config(**SMALL, intermediate_size=32, num_key_value_heads=1, head_dim=8, sliding_window=8),
    "bloom": BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2),
    "mpt": MptConfig(vocab_size=300, d_model=16, n_layers=1, n_heads=2, max_seq_len=64),
    "gpt_neo": GPTNeoConfig(
        vocab_size=300, hidden_size=16, num_layers=1, num_heads=2, attention_types=[[["global"], 1]]
    ),
    "mamba": MambaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, state_size=4),
}


@pytest.mark.parametrize("name", list(WITHOUT_SDPA))
def test_an_architecture_without_sdpa_is_loaded_with_eager_attention(tmp_path: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_config(WITHOUT_SDPA[name]).eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(5)[None]
    loaded = load_model(tmp_path).eval()
    assert loaded.config._attn_implementation == "eager"
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(ModelError, match=r"has no attention 'sdpa': set model\.attention to auto or eager"):
        load_model(tmp_path, "sdpa")


FULL_DISK = """
import resource, sys
from ofmu.errors import StorageError
from ofmu.models.config import ScratchModelConfig
from ofmu.models.language import save_model
from ofmu.models.scratch import build_model, train_tokenizer
tokenizer = train_tokenizer(["a b c"], 300)
model = build_model(ScratchModelConfig(hidden_size=64, num_layers=2), tokenizer, seed=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_model(model, tokenizer, sys.argv[1])
except StorageError as error:
    sys.exit(f"StorageError: {error}")
"""


@pytest.mark.slow
def test_a_write_that_fails_halfway_keeps_the_older_model(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    model = build_model(SHAPE, tokenizer, seed=0)
    directory = save_model(model, tokenizer, tmp_path / "model")

    command = [sys.executable, "-c", FULL_DISK, str(directory)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("StorageError: ")
    assert f"Cannot write {directory} (" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [directory]
    assert torch.equal(load_model(directory).state_dict()["lm_head.weight"], model.state_dict()["lm_head.weight"])


def test_a_directory_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tokenizer = train_tokenizer(TEXTS, 300)
    with pytest.raises(StorageError, match="choose a directory that can be written"):
        save_model(build_model(SHAPE, tokenizer, seed=0), tokenizer, tmp_path / "file" / "model")


@pytest.mark.slow
def test_a_saved_model_keeps_the_dropout_and_the_tokenizers_files_of_its_source(tmp_path: Path) -> None:
    shape = {"vocab_size": 300, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    source = save_model(
        GPT2LMHeadModel(GPT2Config(**shape, attn_pdrop=0.25, embd_pdrop=0.0)),
        train_tokenizer(TEXTS, 300),
        tmp_path / "a",
    )
    stored = json.loads((source / "config.json").read_text())
    assert stored["resid_pdrop"] == 0.1
    (source / "tokenizer.model").write_bytes(b"sentencepiece")
    place = source
    for name in ("b", "c"):  # as a target, and as the model that is unlearned from the target
        model = load_model(place)
        assert model.config.attn_pdrop == 0
        place = save_model(model, load_tokenizer(str(place)), tmp_path / name)
    saved = json.loads((place / "config.json").read_text())
    assert {key: saved[key] for key in stored if "drop" in key} == {
        key: value for key, value in stored.items() if "drop" in key
    }
    assert (place / "tokenizer.model").read_bytes() == b"sentencepiece"
    assert not any(path.name == "tokenizer.model" for path in (tmp_path / "b").parent.iterdir())
    assert load_model(place).config.resid_pdrop == 0
