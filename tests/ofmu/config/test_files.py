"""Overrides, renamed keys, and serialisation of configs."""

from __future__ import annotations

import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SerializerFunctionWrapHandler, model_serializer

from ofmu.cli.main import main
from ofmu.cli.params import ConfigChoice
from ofmu.cli.settings import read_settings
from ofmu.config.base import Section
from ofmu.config.files import read_mapping, validate
from ofmu.config.renamed import RENAMED_KEYS
from ofmu.errors import ConfigError
from ofmu.run_config import UnlearnConfig, override
from tune import ParetoSearch
from tune.config import SearchConfig, search_config
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


MINE = """method: {outer_steps: 3, penalty_weight: 0.1, batch_size: 4}
search: {num_trials: 3, space: {method.inner_lr: {low: 0.01, high: 0.1}}}
"""


def warned(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught]


def test_the_users_own_settings_that_another_method_lacks_are_named(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(MINE)
    words = ["method.name=npo", "method.lr=0.001"]
    assert warned(lambda: SearchConfig.read(mine, words)) == [
        "the config's method.outer_steps, method.penalty_weight and search.space are left out: the method 'npo' of the "
        "command line does not have them"
    ]
    # A single run reads no space.
    (sentence,) = warned(lambda: UnlearnConfig.read(mine, words))
    assert "method.outer_steps and method.penalty_weight are left out" in sentence
    (sentence,) = warned(lambda: read_settings(ConfigChoice(str(mine), tuple(words))))
    assert "method.outer_steps and method.penalty_weight are left out" in sentence
    mine.write_text("method: {outer_steps: 3}\n")
    (sentence,) = warned(lambda: UnlearnConfig.read(mine, words))
    assert "method.outer_steps is left out: the method 'npo' of the command line does not have it" in sentence
    mine.write_text("method: {name: npo, beta: 0.2}\n")
    (sentence,) = warned(lambda: UnlearnConfig.read(mine, ["method.name=ofmu"]))
    assert "method.beta is left out: the method 'ofmu'" in sentence
    # A setting that the new method has too is kept, and so is everything under the same method.
    assert warned(lambda: UnlearnConfig.read(mine, ["method.name=simnpo"])) == []
    assert UnlearnConfig.read(mine, ["method.name=simnpo"]).method.model_dump()["beta"] == 0.2
    assert warned(lambda: UnlearnConfig.read(mine, ["method.name=npo"])) == []


def test_a_presets_settings_are_not_the_users_own() -> None:
    assert warned(lambda: SearchConfig.read("quickstart", ["method.name=npo"])) == []
    assert warned(lambda: ConfigChoice(None, ("method.name=npo",)).read_mapping()) == []


def test_a_setting_of_the_command_line_that_another_method_lacks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    for source in (tmp_path / "mine.yaml", "quickstart", None):
        with pytest.raises(ConfigError, match=r"Unknown config key 'method\.outer_steps'"):
            SearchConfig.read(source, ["method.name=npo", "method.outer_steps=5"])


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
        ("search: {space: {method.lr: {low: 1, low: 2}}}", "holds 'low' twice, in line 1: write"),
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


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 3000, "nested more than 50 deep in line 1"),
        ("{a: " * 3000, "nested more than 50 deep in line 1"),
        ("\n".join(" " * depth + "a:" for depth in range(2000)), "nested more than 50 deep in line 50"),
        ("[" * 1_000_000, "nested more than 50 deep"),
        (BOMB, "has more than 200,000 values in line"),
        (MERGES, "has more than 200,000 values in line"),
        ("seed: 1\ndata: &d {x: *d}\n", r"has in line 2 the alias '\*d' of a value that it is part of"),
        ("data: &d [1, *d]\n", "of a value that it is part of"),
        (f"seed: 1\ndata: {'9' * 5000}\n", "has in line 2 a number or a date that cannot be read"),
        (f"seed: 0x{'f' * 5000}\n", "has in line 1 an integer above"),
        ("seed: 1\ndata: 2024-13-45\n", "has in line 2 a number or a date that cannot be read"),
        ("seed: 1\nmethod: {lr: 1\n", "is not valid YAML in line 3"),
        ("seed: 1\n\tdata: 1\n", "is not valid YAML in line 2"),
        ("a: *nowhere\n", "is not valid YAML in line 1: found undefined alias"),
        ("seed: !!python/object/apply:os.system [ls]\n", "is not valid YAML in line 1: could not determine a constr"),
        ("{[1]: 2}", "is not valid YAML in line 1: .*unhashable"),
        ("\x00\x01binary", "is not valid YAML: .*not allowed"),
        ("- a\n- b\n", "must hold sections such as 'data:', not a list"),
        ("just text", "must hold sections such as 'data:', not a str"),
    ],
    ids=itertools.count(),
)
def test_a_hostile_config_is_one_sentence_at_once(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_mapping(path)
    assert str(caught.value).startswith(f"The config {path} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), [("f.jsonl", "JSONL"), ("f.CSV", "CSV"), ("f.parquet", "Parquet")])
def test_rows_in_place_of_a_config_are_called_rows(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    with pytest.raises(ConfigError, match="Cannot read the config"):
        read_mapping(path)
    path.write_text('{"question": "Who?", "answer": "Ann."}\n{"question": "Where?", "answer": "There."}\n')
    with pytest.raises(ConfigError, match=rf"{name} is a {kind} file, and a config is YAML: .* as data\.forget$"):
        read_mapping(path)


@pytest.mark.timeout(20)
def test_only_ordinary_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "zero.yaml"):
        with pytest.raises(ConfigError, match="it is a pipe or a device, and only ordinary files are read"):
            read_mapping(tmp_path / name)
    with (tmp_path / "large.yaml").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ConfigError, match=r"it has .* MiB, and at most 4 MiB are read"):
        read_mapping(tmp_path / "large.yaml")


def test_aliases_within_the_bounds_are_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: &a {x: [1, 2]}\nb: [*a, *a]\nc: *a\n")
    assert read_mapping(tmp_path / "mine.yaml")["b"] == [{"x": [1, 2]}] * 2


@pytest.mark.parametrize("section", ["model", "data", "method", "engine", "search", "cluster", "compare"])
@pytest.mark.parametrize("value", ["text", "5", "[1, 2]", "true"])
def test_a_section_that_is_no_mapping_is_one_sentence(
    tmp_path: Path, section: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(f"{section}: {value}\n")
    run = ["--run-dir", str(tmp_path / "run")]
    for command in (
        ["search", str(tmp_path / "mine.yaml"), *run],
        ["search", f"{section}={value}", *run],
        ["search", str(tmp_path / "mine.yaml"), "method.name=npo", *run],
    ):
        assert main(command) == 1
        assert f"The section '{section}' has the value" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"The section '{section}'|valid dictionary"):
        ParetoSearch({section: yaml.safe_load(value)})


def test_a_setting_below_an_empty_section_is_set(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("training:\nsearch:\n  space:\nmethod: {name: npo}\n")
    assert SearchConfig.read(tmp_path / "mine.yaml", ["training.epochs=3"]).training.epochs == 3
    entry = "search.space.method.beta.choices=[0.1, 0.2]"
    assert SearchConfig.read(tmp_path / "mine.yaml", [entry]).search.space["method.beta"].choices == [0.1, 0.2]
    with pytest.raises(ConfigError, match="runs through 'epochs', which is a value and not a section"):
        SearchConfig.read(tmp_path / "mine.yaml", ["training.epochs=3", "training.epochs.more=1"])


@pytest.mark.parametrize(
    "entry",
    [
        "seed=true",
        "method.batch_size=true",
        "method.inner_lr=true",
        "method.seed=false",
        "method.batch_size=1000000000000000000",
        "model.scratch.num_layers=1000000000",
        "model.scratch.vocab_size=1000000000000",
        "search.num_trials=1000000000000000000",
        "cluster.num_workers=1000000000000000000",
        "evaluation.batch_size=true",
    ],
)
def test_numbers_that_nobody_meant_are_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=f"Config key '{entry.partition('=')[0]}' has the value"):
        SearchConfig.read(None, [entry])


def test_an_entry_of_a_list_is_no_key() -> None:
    key = r"Config key 'evaluation\.attacks' has the value 'nope'"
    with pytest.raises(ConfigError, match=f"{key} in entry 2, but it must be 'relearning'"):
        SearchConfig.read(None, ["evaluation.attacks=[relearning, nope]"])
    with pytest.raises(ConfigError, match=f"{key}, but it must be a list"):
        SearchConfig.read(None, ["evaluation.attacks=nope"])


def test_a_switch_is_no_number() -> None:
    assert SearchConfig.read(None, ["evaluation.rouge=false", "method.seed=null"]).evaluation.rouge is False


@pytest.mark.slow
def test_a_method_of_the_users_own_replaces_the_method_of_a_config() -> None:
    mapping = override(read_mapping("quickstart"), ["method.name=fadingascent", "method.module=examples.own_module"])
    assert mapping["method"]["name"] == "fadingascent"
    assert "inner_steps" not in mapping["method"]
    config = search_config(mapping)
    assert set(config.search.space) == set(default_space("fadingascent", "examples.own_module"))
    for order in (1, -1):
        overrides = ["method.module=examples.own_module", "method.name=fadingascent"][::order]
        assert SearchConfig.read(None, overrides).method.name == "fadingascent"


@pytest.mark.parametrize("module", ["[1]", "5", "{a: 1}", "true"])
def test_a_module_that_is_no_text_is_one_sentence(module: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.module must be the name of a Python module"):
        SearchConfig.read(None, ["method.name=mine", f"method.module={module}"])
