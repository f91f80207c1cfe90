"""The first steps of a run: the model and its data, the graph, what can be folded in it, and the plan."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from exactq import flow
from exactq.graphs.graph import Graph
from exactq.optimization.pipeline import Optimized, before_after, optimize
from exactq.plans.plan import Float, Plan, dynamic_layers
from exactq.plans.recipes import RECIPES, recipe_named
from exactq.quantization.fit import plan_fits
from exactq.runs.questions import agreed, given
from exactq.runs.tables import layer_rows, short_plan_rows
from exactq.runs.wishes import RECIPE, Wishes
from exactq.sources.capture import capture
from exactq.sources.resolve import Source, resolve
from exactq.talk import Advance, Talk
from exactq.targets import target_named

CHANGES, GRAPHS, PLAN, VALUES = "what the optimisation did", "graph before and after", "plan", "every value"
"""The headings of the tables."""


def traced(asked: Wishes, talk: Talk) -> tuple[Source, Graph]:
    """The model with its data, and its graph as captured."""
    agreed(talk, "trace", f"Trace {asked.model}?", yes="load it and its data, and record its operators as a graph")
    with ExitStack() as stack:
        bars: list[Advance] = []

        def progress(step: int, steps: int, loss: float) -> None:
            if not bars:
                bars.append(stack.enter_context(talk.track(f"train {asked.model}", steps)))
            bars[0](1, f"loss {loss:.4g}")

        stack.enter_context(talk.track("load", None))
        source = resolve(
            asked.model,
            weights=asked.weights,
            data=asked.data,
            input_shape=asked.input_shape,
            trust=asked.trust,
            random_weights=asked.random_weights,
            seed=asked.seed,
            calibration=asked.calibration,
            progress=progress,
        )
    talk.say(f"model      {source.label}: {source.origin}; data {source.dataset.name}")
    with talk.track("capture", None):
        flow.check_reading(source.module, source.dataset.first.inputs)
        captured = capture(source.module, source.example)
    return source, captured


def optimized(captured: Graph, talk: Talk) -> Graph:
    """The captured graph after the passes, with what they found and did told."""
    operators = len(captured.calls)
    agreed(talk, "analyse", f"Analyse its {operators} operators?", yes="look for what can be folded away before quantizing")
    with talk.track("optimise", None):
        found = optimize(captured)
    changes = [(change.name, change.what) for change in found.found]
    rows = [(name, *(op.removeprefix("aten.") for op in ops)) for name, *ops in before_after(captured, found.graph)]
    talk.say(f"graph      operators: {operators}, after optimisation {len(found.graph.calls)}{_passes(found)}")
    for kept in found.kept:
        talk.say(f"kept       {kept.what}")
    talk.show_unasked(CHANGES, ("value", "change"), changes)
    talk.show_unasked(GRAPHS, ("value", "before", "after", "activation"), rows)
    agreed(
        talk,
        "optimise",
        f"Optimise the graph with these {len(changes)} changes?" if changes else "Go on with the graph as it is?",
        yes="the function stays the same, and what is quantized is simpler",
        details={
            "c": ("show each change", lambda: talk.show(CHANGES, ("value", "change"), changes)),
            "d": (
                "show the graph before and after",
                lambda: talk.show(GRAPHS, ("value", "before", "after", "activation"), rows),
            ),
        },
    )
    return found.graph


def _passes(found: Optimized) -> str:
    """What the passes did in a few words: ` (batchnorm ×19, identities ×2)`."""
    counts: dict[str, int] = {}
    for result in found.results:
        counts[result.name] = counts.get(result.name, 0) + len(result.found)
    told = ", ".join(f"{name} ×{count}" for name, count in counts.items() if count)
    return f" ({told})" if told else ""


def planned(asked: Wishes, graph: Graph) -> Plan:
    """The plan that was given, or one made from the recipe."""
    plan = asked.given_plan()
    if plan is None:
        return flow.plan_graph(graph, target=asked.target, recipe=asked.recipe or RECIPE)
    target, isa = target_named(f"{plan.target}@{plan.isa}")
    plan_fits(graph, plan, target.ability(isa))
    return plan


def agreed_plan(asked: Wishes, graph: Graph, talk: Talk) -> tuple[Wishes, Plan]:
    """The plan that is to be carried out, after it was shown, and the wishes with the recipe that was chosen for it."""
    while True:
        if asked.plan is None:
            known = f"Which recipe? {', '.join(RECIPES)}, or a YAML file"
            asked = replace(asked, recipe=given(talk, "plan", known, asked.recipe or RECIPE, recipe_named))
        plan = planned(asked, graph)
        _show(plan, graph, talk)
        if _agreed_to(plan, asked, talk):
            return asked, plan


def _agreed_to(plan: Plan, asked: Wishes, talk: Talk) -> bool:
    details = {"v": ("show every value with its reason", lambda: talk.show(VALUES, *_values(plan)))}
    another = "choose another recipe" if asked.plan is None else None
    text = "Quantize with this plan?"
    return agreed(talk, "quantize", text, yes="calibrate, quantize and measure", no=another, details=details)


def _values(plan: Plan) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    return ("value", "codes", "reason"), short_plan_rows(plan)


def _show(plan: Plan, graph: Graph, talk: Talk) -> None:
    talk.show_unasked(PLAN, ("layer", "operator", "weights", "output"), layer_rows(graph, plan))
    talk.show_unasked(VALUES, *_values(plan))
    calls = [graph.name(node) for node in graph.calls]
    floats = sum(isinstance(plan.slots[name], Float) for name in calls)
    shares = f"{len(calls) - floats} of {len(calls)} operators on codes"
    if dynamic := len(dynamic_layers(plan)):
        shares += f", {dynamic} that {'encodes its' if dynamic == 1 else 'encode their'} input at run time"
    talk.say(f"plan       {plan.recipe} for {plan.target}@{plan.isa}: {shares}")
