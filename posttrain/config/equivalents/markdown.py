"""The tables of equivalents as Markdown."""

from __future__ import annotations

from posttrain.config.equivalents.entry import Equivalent
from posttrain.config.equivalents.tools import TOOLS


def equivalents_table() -> str:
    """Each of our settings that another tool has too: what it is called there, and what is different here."""
    rows: dict[str, dict[str, list[Equivalent]]] = {}
    for tool in TOOLS.values():
        for entry in tool.equivalents:
            rows.setdefault(entry.ours, {}).setdefault(tool.key, []).append(entry)
    header = f"| here | {' | '.join(tool.name for tool in TOOLS.values())} | what is different here |"
    lines = [header, "|---" * (len(TOOLS) + 2) + "|"]
    for ours in sorted(rows, key=_order):
        names = [", ".join(f"`{entry.name}`" for entry in rows[ours].get(key, ())) for key in TOOLS]
        lines.append(f"| `{ours}` | {' | '.join(names)} | {_differences(rows[ours])} |")
    return "\n".join(lines)


def without_equivalent_table() -> str:
    """Each setting of another tool that has no equivalent here, with the reason; one row for each reason."""
    rows: dict[tuple[bool, str], dict[str, str]] = {}
    for tool in TOOLS.values():
        for names, reason, needed in tool.without_equivalent():
            listed = ", ".join(f"`{name}`" for name in dict.fromkeys(names.split()))
            rows.setdefault((needed, reason), {})[tool.name] = listed
    lines = ["| settings | lost? | why |", "|---|---|---|"]
    for (needed, reason), by_tool in sorted(rows.items(), key=lambda row: row[0][0]):
        groups: dict[str, list[str]] = {}
        for tool_name, listed in by_tool.items():
            groups.setdefault(listed, []).append(tool_name)
        settings = "; ".join(f"{', '.join(tools)}: {listed}" for listed, tools in groups.items())
        lines.append(f"| {settings} | {'yes' if needed else 'no'} | {reason} |")
    return "\n".join(lines)


def _differences(by_tool: dict[str, list[Equivalent]]) -> str:
    """What is different, without the name of the tool where it is the same for several."""
    found: dict[str, list[str]] = {}
    for key, entries in by_tool.items():
        for entry in entries:
            texts = [entry.difference, *(f"`{value}`: {text}" for value, text in entry.value_differences.items())]
            for text in filter(None, (*texts, _values(entry))):
                tools = found.setdefault(text, [])
                if TOOLS[key].name not in tools:
                    tools.append(TOOLS[key].name)
    everywhere = len(by_tool)
    parts = []
    for text, names in found.items():
        shown = text.replace("{tool}'s", "the other tool's" if len(names) > 1 else f"{names[0]}'s")
        parts.append(shown if len(names) == everywhere else f"{', '.join(names)}: {shown}")
    return ". ".join(parts)


def _values(entry: Equivalent) -> str:
    """Values that have another name here."""
    renamed = {
        theirs: ours for theirs, ours in entry.values.items() if theirs != ours or type(theirs) is not type(ours)
    }
    by_value: dict[object, list[str]] = {}
    for theirs, ours in renamed.items():
        by_value.setdefault(ours, []).append(f"`{str(theirs).lower() if isinstance(theirs, bool) else theirs}`")
    return "; ".join(
        f"{', '.join(theirs)} → `{str(ours).lower() if isinstance(ours, bool) else ours}`"
        for ours, theirs in by_value.items()
    )


def _order(ours: str) -> tuple[int, str]:
    """Sections in the order of the config; within them by name."""
    sections = ("finetuning_type", "seed", "model", "data", "dpo", "tracking")
    return sections.index(ours.split(".")[0]), ours


def equivalents_tables() -> str:
    """Both tables, as `docs/coming-from-trl.md` has them."""
    return f"## Settings with an equivalent\n\n{equivalents_table()}\n\n## Settings without one\n\n{without_equivalent_table()}"
