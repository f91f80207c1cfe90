"""`plan.yaml`: every plan comes back as it was, and whatever else is written there is a sentence, never a traceback."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.nets import NETS, plan_of

from exactq.errors import UsageError
from exactq.numerics.formats import FORMATS
from exactq.plans.document import from_yaml, to_yaml
from exactq.plans.plan import Dynamic, Edge, Fixed, Float, Fused, Own, PerChannel, PerTensor, Plan, Product, Same, Slot

texts = st.text(max_size=40) | st.sampled_from(
    [
        "on",
        "null",
        "1",
        "1e3",
        "2001-99-99",
        "a: b",
        "- a",
        "#",
        "a\nb",
        " a ",
        "é",
        "名前",
        "'",
        '"',
        "{x}",
        "*a",
        "&a",
        "!!int",
        "~",
        "<<",
        "a -> b",
    ]
)
formats = st.sampled_from([f for full in FORMATS.values() for f in (full, full.narrow)])
granularities = st.just(PerTensor()) | st.integers(0, 7).map(PerChannel)


@st.composite
def fixed(draw: st.DrawFn) -> Fixed:
    fmt = draw(formats)
    return Fixed(fmt, draw(st.floats(2.0**-126, 2.0**126)), draw(st.integers(fmt.lo, fmt.hi)), draw(texts))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    names = draw(st.lists(texts, min_size=1, max_size=6, unique=True))
    own = st.builds(Own, formats, texts, texts, granularities, st.booleans())
    slots: dict[str, Slot] = {}
    for name in names:
        known = st.sampled_from([*slots, name])
        speaking = st.builds(Fused, known, texts) | st.builds(Product, st.tuples(known, known), formats, texts)
        same = st.builds(Same, st.sampled_from(list(slots)), texts) if slots else own
        dynamic = st.builds(Dynamic, formats, texts, st.booleans())
        slots[name] = draw(own | fixed() | st.builds(Float, texts) | speaking | same | dynamic)
    one = st.sampled_from(names)
    plain = [n for n in names if " -> " not in n]
    edges = (
        draw(st.dictionaries(st.builds(Edge, st.sampled_from(plain), st.sampled_from(plain)), own, max_size=3)) if plain else {}
    )
    return Plan(draw(texts), draw(texts), draw(one), slots, edges)


@settings(max_examples=80)
@given(plans())
def test_every_plan_comes_back_as_it_was(plan: Plan) -> None:
    text = to_yaml(plan)
    back = from_yaml(text)
    assert back == plan
    assert list(back.slots) == list(plan.slots)
    assert to_yaml(back) == text


@pytest.mark.parametrize("name", NETS)
def test_a_made_plan_has_one_line_a_value(name: str) -> None:
    plan = plan_of(name)
    text = to_yaml(plan)
    assert from_yaml(text) == plan
    assert text.count("\n") == 5 + len(plan.slots) + len(plan.edges) + bool(plan.edges)


HEAD = "exactq: 1\ntarget: onnxruntime\nisa: avx2\nrecipe: w8a8\n"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nvalues: *b\n"


def with_line(line: str) -> str:
    return f"{HEAD}values:\n  x: {line}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a plan: it needs the fields exactq, target"),
        ("[]", "is not a plan"),
        ("{", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("\x00", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("x: 2001-99-99", "is not YAML: month must be in 1..12"),
        ("? [a]\n: 1", "is not YAML"),
        (BOMB, "is not YAML: aliases like *a are not allowed, write the value out (line 2)"),
        ("x: !!python/object/apply:os.system [touch hacked]", "is not YAML: could not determine a constructor"),
        ("x: !!python/name:os.system", "is not YAML: could not determine a constructor"),
        (HEAD.replace("1", "2") + "values: {}", "has the version 2; this exactq reads version 1"),
        (HEAD.replace("1", "true") + "values: {}", "has the version True"),
        (HEAD.replace("avx2", "5") + "values: {}", "has no `isa`, or one that is no text: 5"),
        (HEAD + "values: {}\nvalue: {}", "unknown field 'value': did you mean 'values'?"),
        (HEAD + "values: {}\nedges: 5", "edges is 5; it needs lines of the form 'value -> user: …'"),
        (HEAD + "values: {}\nedges: {a: {float: x}}", "the edge 'a' is not of the form 'value -> user'"),
        (HEAD + "values: {}\nedges: {a -> b: {float: x}}", "unknown value in the plan's edge `a -> b` 'a'"),
        (HEAD + "values:\n  x: {float: a}\n  x: {float: b}\n", "is not YAML: 'x' stands there twice, keep one (line 7)"),
        (with_line("float"), "`x` is 'float'; it needs one of own, same"),
        (with_line("{}"), "`x` is {}; it needs one of own"),
        (with_line("{flaot: x}"), "`x`: unknown kind of slot 'flaot': did you mean 'float'?"),
        (with_line("{own: uint8}"), "`x`: the field 'observer' is missing; 'own' needs own, observer"),
        (with_line("{own: uint9, observer: minmax}"), "`x`: unknown format 'uint9': did you mean"),
        (with_line("{own: uint8, observer: minmax, scael: 1}"), "`x`: unknown field 'scael'"),
        (with_line("{own: uint8, observer: [a]}"), "`x`: observer is ['a']; it needs a text"),
        (with_line("{own: uint8, observer: minmax, per: block}"), "`x`: per is 'block'; allowed: tensor, channel"),
        (with_line("{own: uint8, observer: minmax, per: channel, axis: 1.5}"), "`x`: axis is 1.5; it needs a whole number"),
        (with_line("{own: uint8, observer: minmax, per: channel, axis: -1}"), "`x`: axis is -1; axes are counted from 0"),
        (with_line("{own: uint8, observer: minmax, axis: 1}"), "`x`: axis has a meaning only with 'per: channel'"),
        (with_line("{own: uint8, observer: minmax, symmetric: maybe}"), "`x`: symmetric is 'maybe'; allowed: true, false"),
        (with_line("{fixed: uint8, scale: much, zero: 0}"), "`x`: scale is 'much'; it needs a number"),
        (with_line("{fixed: uint8, scale: .nan, zero: 0}"), "`x`: the scale is nan; it needs a positive float32"),
        (with_line("{fixed: uint8, scale: 0.1, zero: 1.5}"), "`x`: zero is 1.5; it needs a whole number"),
        (with_line("{fixed: uint8, scale: true, zero: 1}"), "`x`: scale is True; it needs a number"),
        (with_line("{fixed: uint8, scale: 0.1, zero: 300}"), "`x`: the zero 300 is no code"),
        (with_line("{product: [a], format: int32}"), "`x`: product is ['a']; it needs the names of two values"),
        (with_line("{product: [a, {b: c}], format: int32}"), "`x`: product is {'b': 'c'}; it needs a text"),
        (with_line("{same: y}"), "plan.yaml: unknown value in the plan's line for `x` 'y'"),
        (with_line("{same: x}"), "plan.yaml: the plan's lines x -> x go in a circle"),
        (with_line("{float: null}"), "`x`: float is None; it needs a text"),
        (with_line("{float: x, reason: {}}"), "`x`: reason is {}; it needs a text"),
        (HEAD + "values:\n  yes: {float: x}\n", "the name is True; it needs a text: write it in quotes"),
    ],
)
def test_a_wrong_document_says_where_and_what(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        from_yaml(text)
    assert str(error.value).startswith("plan.yaml")
    assert message in str(error.value)


def test_nothing_in_a_document_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for tag in ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/object/apply:pathlib.Path.touch"):
        with pytest.raises(UsageError):
            from_yaml(f"x: {tag} [touch hacked]")
    assert not list(tmp_path.iterdir())


def test_numbers_may_be_written_as_yaml_does_not_know_them() -> None:
    back = from_yaml(with_line("{fixed: uint8, scale: 1e-3, zero: 3}"))
    assert back.slots["x"] == Fixed(FORMATS["uint8"], 0.001, 3, "asked for in the plan")
    assert list(from_yaml(f"{HEAD}values:\n  0: {{float: x}}\n").slots) == ["0"]


@settings(max_examples=50)
@given(draw=st.data())
def test_a_document_with_any_character_changed_is_a_plan_or_a_usage_error(draw: st.DataObject) -> None:
    text = to_yaml(plan_of("one layer twice"))  # its edge included
    at = draw.draw(st.integers(0, len(text) - 1))
    with suppress(UsageError):
        from_yaml(text[:at] + draw.draw(st.text(max_size=3)) + text[at + 1 :])
