"""Overrides, renamed keys, and serialisation of configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SerializerFunctionWrapHandler, model_serializer

from ofmu.cli.main import main
from ofmu.config.base import Section
from ofmu.config.files import read_mapping, validate
from ofmu.config.renamed import RENAMED_KEYS
from ofmu.errors import ConfigError
from ofmu.run_config import override
from tune.config import SearchConfig
from tune.space.parameter import default_space


def test_another_method_drops_the_settings_and_the_space_of_the_first_method() -> None:
    preset = read_mapping("quickstart")
    config = SearchConfig.read("quickstart", ["method.lr=0.001", "method.name=npo", "seed=3"])
    assert config.method.name == "npo"
    assert config.method.lr == 0.001
    assert config.method.batch_size == preset["method"]["batch_size"]
    assert config.search.space == default_space("npo")
    assert config.search.num_trials == preset["search"]["num_trials"]
    assert preset["method"]["inner_update"] == "normalized", "the preset itself is not changed"


def test_naming_the_same_method_changes_nothing() -> None:
    preset = read_mapping("quickstart")
    assert override(preset, ["method.name=ofmu"])["search"] == preset["search"]


def test_a_ctrl_c_during_serialisation_stays_a_keyboard_interrupt() -> None:
    """Pydantic raises an ordinary error instead. A search would take it for a callback's error and continue."""

    class Interrupted(Section):
        @model_serializer(mode="wrap")
        def _interrupt(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
            raise KeyboardInterrupt

    class Whole(Section):
        part: Interrupted = Interrupted()

    with pytest.raises(KeyboardInterrupt):
        Whole().model_dump(mode="json")


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
def test_the_error_for_a_renamed_key_names_the_new_key(old: str, new: str) -> None:
    section, key = old.split(".")
    with pytest.raises(ConfigError, match=f"Config key '{old}' is called '{new}' since ofmu 0.2.0"):
        validate(SearchConfig, {section: {key: 1}})
    section, key = new.split(".")
    assert key in type(getattr(validate(SearchConfig, {}), section)).model_fields


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data:\n  split: forget01\nseed: 1\ndata:\n  authors: 4\n", "holds 'data' twice, in line 1 and in line 4"),
        ("data:\n  split: forget01\n  split: forget05\n", "holds 'split' twice, in line 2 and in line 3"),
        ("seed: 1\n'seed': 2\n", "holds 'seed' twice, in line 1 and in line 2"),
        ("search: {space: {method.lr: {low: 1, low: 2}}}", "holds 'low' twice, in line 1 and in line 1"),
        ("x: [{a: 1}, {b: 1, b: 2}]", "holds 'b' twice"),
        ('data: {prompt_template: "\\ud800{question}"}', "has half a character"),
    ],
)
def test_a_section_or_a_key_that_stands_twice_is_named_with_its_lines(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_mapping(tmp_path / "mine.yaml")
    assert str(caught.value).startswith(f"The config {tmp_path / 'mine.yaml'} ")


def test_an_override_with_a_key_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"The value '\{steps: 1, steps: 2\}' holds 'steps' twice"):
        override({}, ["method={steps: 1, steps: 2}"])


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    text = "a: {b: {c: &C {<<: &D {x: 1, y: 1}, x: 2}}}\ne: {<<: *C, y: 3}\nf: {<<: [*C, *D]}\n"
    (tmp_path / "mine.yaml").write_text(text)
    mapping = read_mapping(tmp_path / "mine.yaml")
    assert mapping["a"]["b"]["c"] == {"x": 2, "y": 1}
    assert (mapping["e"], mapping["f"]) == ({"x": 2, "y": 3}, {"x": 2, "y": 1})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252"])
def test_a_config_in_another_encoding_is_one_sentence(
    tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("# Größe\nseed: 1\n".encode(encoding))
    for command in (["prepare", str(path)], ["search", str(path), "--run-dir", str(tmp_path / "run")]):
        assert main(command) == 1
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert f"The config {path} is not" in errors[0]


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes("seed: 1\n".encode("utf-8-sig"))
    assert read_mapping(tmp_path / "mine.yaml") == {"seed": 1}
