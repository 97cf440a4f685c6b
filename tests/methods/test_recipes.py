"""Recipes: each method has one, it can be run, and all of the method acts under it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from octosim import api, engine, graph, methods, study, train
from octosim.cli.app import app
from octosim.engine.nodes import Circumstances
from octosim.errors import OctosimError
from octosim.methods import caveats, recipes

RUNNER = CliRunner()
SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def octosim(*arguments: str):
    return RUNNER.invoke(app, arguments)


@pytest.mark.parametrize("name", methods.METHODS)
def test_recipe(name: str) -> None:
    """Its settings are a run's; its network can be trained, and nothing of the method is idle by its place or length."""
    config = train.Config(**recipes.settings_of(name))
    assert config.method == name and recipes.find(name).source and recipes.find(name).wants
    made, shape = methods.make(name, config.parameters), SHAPES[config.data]
    assert not {key for key in made.unused if getattr(config, key) != getattr(train.Config(), key)}
    network = engine.Network(
        graph.layers(config.model, 10, config.batchnorm, shape, config.hidden_batchnorm), shape, made, None
    )
    network.check(config.batch_size)
    assert made.caveats(network.nodes, Circumstances(1000, config.epochs, config.optimizer), {}) == []


def test_every_method_has_one() -> None:
    assert set(recipes.names()) == set(methods.METHODS)
    with pytest.raises(OctosimError, match="no recipe 'octopus'.*octo"):
        recipes.find("octopus")


def test_given_settings_replace_a_recipe() -> None:
    made = recipes.with_recipe("laq", {"epochs": 2, "parameters": {"weight_bits": 2}})
    assert (made["epochs"], made["optimizer"], made["parameters"]) == (2, "adam", {"weight_bits": 2})
    other = recipes.with_recipe("laq", {"method": "octo", "parameters": {"lac": "off"}})
    assert (other["method"], other["model"], other["parameters"]) == ("octo", "lenet5-wide", {"lac": "off"})


def test_command_line(tmp_path: Path) -> None:
    """`--recipe` is the command that `methods show` prints; a study takes it too."""
    shown = octosim("methods", "show", "dorefa").stdout
    assert "preresnet20" in shown and "octosim train --recipe dorefa" in shown and "wants: batch normalization" in shown
    told = json.loads(octosim("methods", "show", "wage", "--json").stdout)["recipe"]
    assert told["settings"] == recipes.settings_of("wage")
    short = ("--data", "fashion-mnist-5k", "--steps", "1", "--batch-size", "20")
    done = octosim("train", "--recipe", "laq", *short, "--out", str(tmp_path / "a"))
    assert done.exit_code == 0, done.output
    config = train.read_config(tmp_path / "a")
    expected = recipes.settings_of("laq") | {"data": "fashion-mnist-5k", "steps": 1, "batch_size": 20}
    assert {key: value for key, value in dataclasses.asdict(config).items() if key in expected} == expected
    file = tmp_path / "both.toml"
    file.write_text('[base]\nsteps = 1\ndata = "fashion-mnist-5k"\n[[grid]]\nrecipe = ["laq", "blaq"]\n')
    rows = study.rows(study.read(file), file)
    assert [row.name for row in rows] == ["recipe=laq", "recipe=blaq"]
    assert rows[1].config.parameters["period"] == 5 and rows[1].config.steps == 1 and rows[1].config.optimizer == "adam"


def test_from_python(tmp_path: Path) -> None:
    run = api.train(recipe="laq", data="fashion-mnist-5k", steps=1, batch_size=20, out=tmp_path / "run", progress=False)
    config = train.read_config(tmp_path / "run")
    assert (config.model, config.optimizer, config.lr, config.steps) == ("lenet5-wide", "adam", 0.005, 1)
    assert len(run.records) == 1
    with pytest.raises(OctosimError, match="either config or recipe"):
        api.train(train.Config(), recipe="laq")


# ---- caveats --------------------------------------------------


def small(method: str, steps: int = 2, **settings: object) -> train.Run:
    config = train.Config(**{"model": "lenet5", "method": method, "steps": steps, "batch_size": 20} | settings)
    run = train.Run(config)
    for _ in range(steps):
        run.train_step()
    return run


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("octo", {}, "lac=channel is inert in 2 of 5 layers (conv1, conv2)"),
        ("octo", {"parameters": {"lac": "feature"}}, None),
        ("octo", {"parameters": {"lac": "off"}}, "lac=off"),
        ("octo", {"parameters": {"lac": "feature", "prc": "off"}}, "prc=off"),
        ("octo", {"parameters": {"prc_ratio": 1}}, "prc_ratio=1: no range clipping"),
        ("octo", {"parameters": {"prc": "percentile", "prc_percentile": 100}}, "prc_percentile=100: no range clipping"),
        ("octo", {"parameters": {"lac": "feature", "prc": "gauss", "prc_ratio": 1}}, None),
        ("octo", {"batchnorm_statistics": "frozen"}, None),
        ("octo-reference", {}, None),
        ("octo-reference", {"model": "mlp"}, "no convolution: nothing is quantized"),
        ("octo-reference", {"parameters": {"lac": "off"}}, "lac=off"),
        ("octo-reference", {"parameters": {"prc_ratio": 1}}, "prc_ratio=1: no range clipping"),
        ("blaq", {"optimizer": "adam"}, "no epoch of two-stage steps: the first is epoch 5 (period), the run has 1"),
        ("blaq", {"optimizer": "adam", "parameters": {"period": 1}}, None),
        ("laq", {}, "with sgd the curvature is the same for all weights"),
        ("laq", {"optimizer": "adam"}, None),
        ("dorefa", {}, "no batch normalization in front of the clip to [0, 1] in 1 of 3 layers (fc2)"),
        ("dorefa", {"hidden_batchnorm": True}, None),
        ("dorefa", {"parameters": dict.fromkeys(("weight_bits", "activation_bits", "gradient_bits"), 32)},
         "32 bits everywhere: nothing is quantized"),
        ("dorefa", {"batchnorm": False}, "in 3 of 3 layers (conv2, fc1, fc2)"),
        ("logbtq", {}, "accumulators are float32"),
        ("logbtq", {"parameters": {"barrier": 0}}, "no log barrier"),
        ("logbtq", {"parameters": {"barrier": 1e-5}}, "pull is below 0.0001 of the gradient in 9 of 9 tensors (w"),
        ("qat", {"parameters": {"delay": 2}}, "activations are never quantized"),
        ("banner", {"batchnorm": False}, "no batch normalization: Range BN never acts"),
        ("fqat", {"batchnorm": False}, "Clipping Batch Normalization never acts"),
        ("banner", {}, None),
        ("fp32", {}, None),
    ],
)
def test_caveats(method: str, settings: dict, words: str | None) -> None:
    run = small(method, **settings)
    digest = run.digest()
    told = run.look_back()
    assert run.digest() == digest, "looking changes nothing"
    assert not told if words is None else any(words in sentence for sentence in told), told


def test_a_saturated_clip_is_told() -> None:
    run = small("dorefa", hidden_batchnorm=True)
    node = next(node for node in run.network.nodes if node.name == "bn1")
    node.params["beta"] += 3
    told = run.look_back()
    assert any("the clip saturates half of the inputs in 1 of 3 layers (conv2: " in sentence for sentence in told), told


def test_caveats_are_kept_and_reported(tmp_path: Path) -> None:
    """In the manifest of a finished run, at the end of train, in its JSON and on the report's page."""
    out = tmp_path / "run"
    done = octosim("train", "--model", "lenet5", "--steps", "2", "--batch-size", "20", "--out", str(out))
    assert done.output.count("caveat: lac=channel is inert in 2 of 5 layers") == 2, "when it begins and when it ends"
    told = train.read_manifest(out)["outcome"]["caveats"]
    assert len(told) == 1 and "INT8 + PRC" in told[0]
    assert octosim("verify", str(out)).exit_code == 0
    page = tmp_path / "page.md"
    assert octosim("report", str(out), "-o", str(page)).exit_code == 0
    assert "lac=channel is inert in 2 of 5 layers" in page.read_text()


def test_hidden_batchnorm() -> None:
    """Behind each fully connected layer but the last, and where a network has names, refused."""
    nodes = engine.network.nodes(graph.layers("lenet5", 10, hidden_batchnorm=True), (28, 28, 1))
    names = [node.name for node in nodes]
    assert [names[names.index(fc) + 1][:2] for fc in ("fc1", "fc2")] == ["bn", "bn"] and names[-1] == "fc3"
    with pytest.raises(OctosimError, match="hidden_batchnorm"):
        graph.layers("resnet8", 10, hidden_batchnorm=True, in_shape=(32, 32, 3))
    with pytest.raises(OctosimError, match="hidden_batchnorm needs batchnorm"):
        graph.layers("lenet5", 10, batchnorm=False, hidden_batchnorm=True)


@pytest.mark.parametrize("model", ["preresnet20", "preresnet20-clip"])
def test_preactivation(model: str) -> None:
    """No convolution or linear layer but the first takes a sum that is not normalized."""
    nodes = engine.network.nodes(graph.layers(model, 10, in_shape=(32, 32, 3)), (32, 32, 3))
    weighted = [node for node in nodes if node.layer.weighted]
    assert len(weighted) == 22 and all(caveats.behind_norm(node, nodes) for node in weighted[1:])
