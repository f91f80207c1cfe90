"""YAML from a user's hand as plain data: no duplicate keys, no aliases, no tags; whatever is wrong is one sentence."""

from __future__ import annotations

from typing import Any

import yaml

from exactq.errors import UsageError


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses what a plan has no use for and what would lose a line in silence."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.YAMLError(f"aliases like *{event.anchor} are not allowed, write the value out{_line(event.start_mark)}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  # PyYAML's signature
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"'{key.value}' stands there twice, keep one{_line(key.start_mark)}")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def _line(mark: Any) -> str:
    return f" (line {mark.line + 1})"


def read_yaml(text: str, origin: str) -> Any:
    """The data of a YAML text; raises `UsageError` that names `origin` for anything that is no plain YAML."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except RecursionError:
        raise UsageError(f"{origin} is not YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise UsageError(f"{origin} is not YAML: {' '.join(str(error).split())}") from error
