from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from ofmu.models.state_entries import missing_entry, state_entries


def tied_llama() -> Any:
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=20, tie_word_embeddings=True))


def test_tied_weights_are_one_entry_and_buffers_that_are_not_persistent_none() -> None:
    model = tied_llama()
    entries = state_entries(model)
    assert sorted(name for entry in entries for name in entry.names) == sorted(model.state_dict())
    assert [entry.names for entry in entries if len(entry.names) > 1] == [
        ("model.embed_tokens.weight", "lm_head.weight")
    ]
    assert entries[0].tensor is model.model.embed_tokens.weight
    assert [name for name, _ in model.named_buffers()]


def test_a_missing_entry_is_named_unless_a_tied_one_is_there_or_it_is_never_saved() -> None:
    model = tied_llama()
    names = set(model.state_dict())
    assert missing_entry(model, names) is None
    assert missing_entry(model, names - {"lm_head.weight"}) is None
    assert missing_entry(model, names - {"model.embed_tokens.weight", "lm_head.weight"}) == "model.embed_tokens.weight"
    assert missing_entry(model, names - {"model.norm.weight"}) == "model.norm.weight"
    model._keys_to_ignore_on_save = {"model.norm.weight"}
    assert missing_entry(model, names - {"model.norm.weight"}) is None
