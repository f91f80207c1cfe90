"""Recipes: the built-in ones, and files, whose every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from exactq.errors import UsageError
from exactq.numerics.formats import INT4, INT8, UINT8
from exactq.plans.recipes import RECIPES, Match, Recipe, Rule, recipe_named

FILE = """
name: mine
weights: int4-narrow
activation_observer: percentile:99.9
rules:
  - {match: {op: linear}, weights: int8-narrow, reason: few weights}
  - {match: {name: "layer1.*"}, float: true}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


def test_a_file_says_what_it_says(path: Path) -> None:
    path.write_text(FILE)
    assert recipe_named(str(path)) == Recipe(
        "mine",
        INT4.narrow,
        UINT8,
        activation_observer="percentile:99.9",
        rules=(
            Rule(Match(op="linear"), "few weights", INT8.narrow),
            Rule(Match(name="layer1.*"), "asked for in mine.yaml", stay_float=True),
        ),
    )
    path.write_text("{}")
    assert recipe_named(str(path)) == Recipe("mine")


def test_every_recipe_is_found_by_its_name() -> None:
    assert all(recipe_named(name) is recipe and recipe.name == name for name, recipe in RECIPES.items())
    with pytest.raises(UsageError, match="unknown recipe 'w8a9': did you mean 'w8a8'"):
        recipe_named("w8a9")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is []; it needs a table of fields: name, weights"),
        ("{", "is not YAML"),
        ("a: &x 1\nb: *x", "aliases like *x are not allowed"),
        ("name: a\nname: b", "'name' stands there twice"),
        ("wieghts: int8", "'wieghts': did you mean 'weights'?"),
        ("weights: int9", "unknown format 'int9'"),
        ("weights: 8", "weights is 8; it needs a text"),
        ("name: 5", "name is 5; it needs a text"),
        ("activation_observer: [a]", "activation_observer is ['a']; it needs a text"),
        ("rules: 5", "rules is 5; it needs a list of rules"),
        ("rules: [5]", "a rule in"),
        ("rules: [{weights: int8}]", "the match of a rule in"),
        ("rules: [{match: {op: linear}}]", "the rule for 'op linear' needs exactly one of `weights` and `float: true`"),
        ("rules: [{match: {op: linear}, weights: int8, float: true}]", "needs exactly one of `weights` and `float: true`"),
        ("rules: [{match: {op: linear}, float: please}]", "float is 'please'; allowed: true, false"),
        ("rules: [{match: {}, float: true}]", "a rule's `match` needs exactly one of `op` and `name`"),
        ("rules: [{match: {op: a, name: b}, float: true}]", "a rule's `match` needs exactly one of `op` and `name`"),
        ("rules: [{match: {ops: a}, float: true}]", "'ops': did you mean 'op'?"),
        ("rules: [{match: {op: 3}, float: true}]", "op is 3; it needs a text"),
        ("rules: [{match: {op: linear}, weights: int8, why: x}]", "'why'"),
    ],
)
def test_a_wrong_file_is_named_with_its_mistake(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        recipe_named(str(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_cannot_be_read_is_named(path: Path) -> None:
    with pytest.raises(UsageError, match=r"mine\.yaml does not exist"):
        recipe_named(str(path))
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"mine\.yaml cannot be read"):
        recipe_named(str(path))


@pytest.mark.parametrize(
    ("match", "op", "fits"),
    [
        (Match(op="conv"), "aten.conv1d", True),
        (Match(op="conv"), "aten.conv2d", True),
        (Match(op="conv"), "aten.conv_transpose2d", False),
        (Match(op="conv2d"), "aten.conv2d", True),
        (Match(op="aten.conv2d"), "aten.conv2d", True),
        (Match(op="linear"), "aten.conv2d", False),
        (Match(name="layer1.*"), "aten.add", True),
        (Match(name="LAYER1.*"), "aten.add", False),
    ],
)
def test_a_match_means_an_operator_or_a_name(match: Match, op: str, *, fits: bool) -> None:
    assert match.fits("layer1.0.conv1", op) is fits
