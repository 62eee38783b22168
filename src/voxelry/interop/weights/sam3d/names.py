"""Names of tensors, theirs and ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Names"]


class Names:
    """A translation of dotted names that can be undone.

    Args:
        rules: pairs of theirs and ours, each some parts of a name, `#` for a number. At every place of a name the
            first rule that fits is taken; what none fits stays.
    """

    def __init__(self, rules: Iterable[tuple[str, str]]):
        pairs = [(theirs.split("."), ours.split(".")) for theirs, ours in rules]
        self._into, self._back = pairs, [(ours, theirs) for theirs, ours in pairs]

    def ours(self, name: str) -> str:
        """Our name of a tensor."""
        return translate(name, self._into)

    def theirs(self, name: str) -> str:
        """Their name of a tensor."""
        return translate(name, self._back)


def translate(name: str, rules: Sequence[tuple[list[str], list[str]]]) -> str:
    """A dotted name with the parts that rules fit replaced."""
    parts, found = name.split("."), []
    while parts:
        for before, after in rules:
            here = parts[: len(before)]
            if len(here) == len(before) and all(
                one == part or (part == "#" and one.isdigit()) for one, part in zip(here, before, strict=True)
            ):
                numbers = iter(one for one, part in zip(here, before, strict=True) if part == "#")
                found += [next(numbers) if part == "#" else part for part in after]
                parts = parts[len(before) :]
                break
        else:
            found.append(parts.pop(0))
    return ".".join(found)
