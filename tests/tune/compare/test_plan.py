from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from ofmu.cli.main import main
from ofmu.config.files import preset_names, read_mapping
from ofmu.errors import ConfigError
from ofmu.methods.registry import method_class
from ofmu.run_config import override
from tune.compare import comparison
from tune.compare.callback import CompareCallback
from tune.compare.comparison import Comparison
from tune.compare.plan import budget_reference, method_configs, unused_settings, with_budget


def configs(*overrides: str, source: str = "quickstart"):
    return method_configs(override(read_mapping(source), overrides))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["compare.methods=ofmu,nop"], "Unknown method 'nop' in compare.methods: did you mean 'npo'?"),
        (["compare.methods=ofmu"], "at least two methods"),
        (["compare.methods=ofmu,ofmu@first"], "Unknown variant 'first' of the method 'ofmu'"),
        (["compare.methods=ofmu,npo@paper"], "The method 'npo' has no variants"),
        ([], "at least two methods"),
        (["compare.methods=npo,ofmu,npo"], "'npo' is named twice"),
        (
            ["compare.methods=ofmu,npo", "data.source=cifar10"],
            "'npo' works on language tasks, and data.source 'cifar10'",
        ),
        (["compare.methods=ofmu,npo", "compare.space.method.lr.low=1"], "npo: search.space.method.lr: low 1"),
        (["compare.methods=ofmu,npo", "compare.space.method.lrr.low=1"], "did you mean 'method.lr'"),
        (["compare.methods=ofmu,npo", "compare.spaces.npo.method.betta.low=1"], "did you mean 'method.beta'"),
        (["compare.methods=ofmu,npo", "compare.spaces.nop.method.lr=1"], "Unknown method 'nop' in compare.spaces"),
        (["compare.methods=ofmu,npo", "compare.sedes=2"], "did you mean 'compare.seeds'"),
        (["compare.methods=ofmu,npo", "compare.budget=0"], "compare.budget"),
        (["compare.methods=ofmu,npo", "compare.retain_draws=-1"], "compare.retain_draws"),
        (["compare.methods=ofmu,npo", "compare.retain_draws=2", "compare.retain_share=1"], "compare.retain_share"),
        (
            ["compare.methods=ofmu,npo", "compare.retain_draws=2", "method.retain_share=0.3"],
            "leave method.retain_share out",
        ),
        (
            ["compare.methods=ofmu,npo", "compare.retain_draws=2", "compare.spaces.npo.method.retain_share.low=0.1"],
            "leave method.retain_share out",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(overrides, words):
    with pytest.raises(ConfigError) as caught:
        configs(*overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_variants_of_one_method_are_contestants_with_their_own_spaces():
    found = configs("compare.methods=ofmu,ofmu@first_order,ofmu@projection,ofmu@paper")
    first, projection, paper = (found[f"ofmu@{name}"] for name in ("first_order", "projection", "paper"))
    assert (first.method.decorrelation, first.method.penalty_weight) == ("none", 0)
    assert not {"method.penalty_weight", "method.similarity_weight", "method.similarity_threshold"} & {
        *first.search.space
    }
    assert projection.method.decorrelation == "projection"
    assert "method.similarity_threshold" in projection.search.space
    assert "method.similarity_weight" not in projection.search.space
    assert (paper.method.forget_margin, paper.method.inner_update) == (None, "sgd")
    assert "method.forget_margin" not in paper.search.space
    assert found["ofmu"].method.variant is None


def test_the_configs_own_method_keeps_its_section_and_space():
    found = configs("compare.methods=npo,ofmu", "method.inner_update=adamw", "method.batch_size=5")
    assert list(found) == ["npo", "ofmu"]
    own = read_mapping("quickstart")["search"]["space"]
    assert {key: spec.model_dump() for key, spec in found["ofmu"].search.space.items()} == own
    assert found["ofmu"].method.inner_update == "adamw"
    assert {config.method.batch_size for config in found.values()} == {5}
    assert found["npo"].method.name == "npo"
    assert len({config.search.num_trials for config in found.values()}) == 1


def test_settings_of_a_method_that_is_not_compared_are_named():
    mine = {"method": {"outer_steps": 3, "batch_size": 4}, "search": {"space": {"method.inner_lr": 0.1}}}
    for methods, expected in (
        (["graddiff", "npo"], ["method.outer_steps", "search.space"]),
        (["ofmu", "npo"], []),
        (["ofmu@paper", "npo"], []),
    ):
        assert unused_settings({**mine, "compare": {"methods": methods}}) == expected
    npo = {"method": {"name": "npo", "beta": 0.2}, "compare": {"methods": "ofmu,simnpo"}}
    assert unused_settings(npo) == ["method.beta"]


def test_ofmu_compare_warns_of_the_users_words_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Comparison, "run", lambda self: None)
    (tmp_path / "mine.yaml").write_text("method: {outer_steps: 3}\n")

    def said(*words):
        run = ["--methods", "graddiff,npo", "--run-dir", str(tmp_path / "run")]
        assert main(["compare", *run, *words]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]

    sentence = "Warning: method.outer_steps has no effect: no compared method is 'ofmu', the method of the config"
    assert said("--benchmark", str(tmp_path / "mine.yaml")) == [sentence]
    assert said("--benchmark", "tofu") == said() == []


def test_other_methods_search_their_own_spaces_with_the_presets_rates():
    space = configs("compare.methods=ofmu,npo")["npo"].search.space
    assert set(space) == {f"method.{key}" for key in method_class("npo").space}
    given = read_mapping("quickstart")["compare"]["space"]["method.lr"]
    assert space["method.lr"].model_dump() == given
    assert space["method.beta"].model_dump() == method_class("npo").space["beta"]


def test_a_range_can_be_changed_in_part_for_all_and_for_one_method():
    found = configs(
        "compare.methods=ofmu,npo,gradascent",
        "compare.space.method.lr.high=0.01",
        "compare.spaces.npo.method.lr.low=0.0005",
        "compare.spaces.npo.method.update=[adamw, sgd]",
        "compare.spaces.gradascent.method.steps=20",
    )
    rate = found["npo"].search.space["method.lr"]
    assert (rate.low, rate.high, rate.log) == (0.0005, 0.01, True)
    assert found["npo"].search.space["method.update"].choices == ["adamw", "sgd"]
    assert found["gradascent"].search.space["method.lr"].low == 1e-4
    assert found["gradascent"].search.space["method.steps"].value == 20
    assert "method.lr" not in found["ofmu"].search.space


@pytest.mark.parametrize("name", preset_names())
def test_every_presets_compare_section_is_sound(name):
    names = ["ofmu", "graddiff", "gradascent"]
    assert list(configs(f"compare.methods={','.join(names)}", source=name)) == names


def test_a_budget_of_evaluations_bounds_the_search_and_only_caps_its_trials():
    config = configs("compare.methods=ofmu,npo", "search.num_trials=4")["npo"]
    bounded = with_budget(config, 1000)
    assert bounded.search.max_gradient_evaluations == 1000
    assert bounded.search.num_trials == 40
    assert bounded.search.space == config.search.space
    assert (budget_reference(("npo", "ofmu")), budget_reference(("npo", "graddiff"))) == ("ofmu", "npo")


@pytest.mark.parametrize("methods", [["ofmu", "npo", "graddiff"], ["npo", "graddiff", "ofmu"]])
@pytest.mark.parametrize(("budget", "others"), [(500, 500), ("evaluations", 730)])
def test_only_a_budget_of_evaluations_is_what_the_reference_spent(methods, budget, others, tmp_path, monkeypatch):
    """The search of the reference method spends 730 here, more than a stated budget, since its last trials end."""
    limits = {}

    def search(session, name, config, callbacks):
        limits[name] = config.search.max_gradient_evaluations
        trials = pd.DataFrame({"gradient_evaluations": [400.0, 330.0], "state": ["complete", "complete"]})
        return SimpleNamespace(run_dir=name, trials=trials)

    monkeypatch.setattr(comparison._Session, "_search", search)
    made = Comparison(read_mapping("quickstart"), methods, budget=budget, run_dir=tmp_path / "run")
    comparison._Session(made._home, made.mapping, None, CompareCallback())._search_all()
    own = None if budget == "evaluations" else 500
    assert limits == {"ofmu": own, "npo": others, "graddiff": others}


def test_python_arguments_replace_the_sections(tmp_path):
    mapping = override(read_mapping("quickstart"), ["compare.seeds=7", "compare.methods=ofmu,npo"])
    made = Comparison(mapping, ["npo", "graddiff"], num_trials=3, budget=500, run_dir=tmp_path / "run")
    assert made.mapping["compare"]["methods"] == ["npo", "graddiff"]
    assert (made.mapping["compare"]["seeds"], made.mapping["compare"]["budget"]) == (7, 500)
    assert made.mapping["search"]["num_trials"] == 3
    again = Comparison(made.configs["npo"], ["npo", "graddiff"], run_dir=tmp_path / "other")
    assert again.configs["npo"].search.space == made.configs["npo"].search.space
    assert not (tmp_path / "run").exists()
