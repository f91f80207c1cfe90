"""What a run asks before each of its steps; who agrees to everything gets what a run without questions does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from exactq.errors import Stopped
from exactq.talk import Question, Talk

YES, NO, STOP = "y", "n", "q"


def agreed(
    talk: Talk,
    step: str,
    text: str,
    *,
    yes: str,
    no: str | None = None,
    default: str = YES,
    details: Mapping[str, tuple[str, Callable[[], None]]] | None = None,
) -> bool:
    """Whether the step is to be done: `yes` and `no` say what each answer does; without `no` one agrees or stops.

    `details` are answers that show something, after which it is asked again. Raises `Stopped`.
    """
    more = details if details is not None else {}
    choices = {YES: yes, **({NO: no} if no is not None else {}), **{key: what for key, (what, _) in more.items()}}
    while True:
        answer = talk.ask(Question(step, text, default, {**choices, STOP: "stop here"}))
        if answer == STOP:
            raise Stopped(f"stopped before the step '{step}', as asked; no run was written")
        if answer not in more:
            return answer == YES
        more[answer][1]()


def given(talk: Talk, step: str, text: str, default: str, check: Callable[[str], object]) -> str:
    """A text that `check` allows: the default, or another one."""
    return talk.ask(Question(step, text, default, check=check))
