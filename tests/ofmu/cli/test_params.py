from __future__ import annotations

from pathlib import Path

import pytest

from ofmu.cli.main import main
from ofmu.cli.params import ConfigChoice


@pytest.mark.parametrize(
    "arguments",
    [
        ["unlearn", "quickstart", "--output"],
        ["evaluate", "a model", "--output"],
        ["export", "a run", "--pick", "knee", "--output"],
    ],
    ids=lambda words: words[0],
)
def test_a_uri_is_not_accepted_as_a_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*arguments, "s3://bucket/run"]) == 2
    assert "--output" in (error := capsys.readouterr().err)
    assert "must be a folder" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "name", "overrides"),
    [
        ([], None, ()),
        (["tofu"], "tofu", ()),
        (["tofu", "seed=1"], "tofu", ("seed=1",)),
        (["seed=1", "method.lr=2"], None, ("seed=1", "method.lr=2")),
        (["seed=1", "seed=1"], None, ("seed=1", "seed=1")),
    ],
)
def test_a_first_word_with_an_equals_sign_is_an_override(
    words: list[str], name: str | None, overrides: tuple[str, ...]
) -> None:
    choice = ConfigChoice.parse(words)
    assert (choice.name, choice.overrides) == (name, overrides)
    assert choice.source == (name or "quickstart")
    assert choice.words() == words


@pytest.mark.parametrize("words", ["plan nope.yaml seed=1 seed=2", "forget nope seed=1 --rows x --output x seed=2"])
def test_a_key_with_two_values_is_named(words: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 1
    warning = "Warning: seed is given twice, as 1 and as 2: the last one is taken"
    assert capsys.readouterr().err.splitlines()[0] == warning
    assert main([word for word in words.split() if word != "seed=1"]) == 1
    assert "twice" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["submit", "jobs", "logs", "stop"])
def test_the_help_names_the_variables_of_the_address_in_their_order(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    help_text = " ".join(capsys.readouterr().out.split())
    assert "default: $RAY_API_SERVER_ADDRESS, else $RAY_ADDRESS, else this machine" in help_text


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["plan", "quickstart"], "--memory"),
        (["plan", "quickstart"], "--tokens-per-second"),
        (["plan", "quickstart", "--tokens-per-second", "1"], "--price"),
        (["forget", "model", "--output", "out"], "--min-utility"),
        (["forget", "model", "--output", "out"], "--budget"),
    ],
)
def test_what_is_no_finite_number_is_refused(
    words: list[str], option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, option, value]) == 2
    assert f"Invalid value for '{option}'" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1"])
def test_a_budget_is_above_0(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forget", "model", "--output", "out", "--budget", value]) == 2
    assert "Invalid value for '--budget'" in capsys.readouterr().err


def test_overrides_are_applied_to_the_default_config() -> None:
    assert ConfigChoice.parse(["seed=7"]).read_mapping()["seed"] == 7
