"""What scripts say before the work and after it, as text for people."""

from typing import Any

REMARKS = {
    "duplicate_audio": "have the same samples as an earlier clip",
    "empty_text": "have an empty transcript, stored as none",
    "text_removed": "are parts of a long recording and cannot keep its transcript",
}


def preparation_summary(folder: str, report: dict[str, Any]) -> str:
    """The counts of a prepared directory: kept, left out and why, and what is worth knowing."""
    lines = [f"{folder}: prepared"]
    for split, total in report["splits"].items():
        size = total["bytes"] / 1e6
        lines.append(f"  {split:<12} {total['clips']:>9,} clips  {total['hours']:>10,.2f} h  {size:>10,.1f} MB")
    for reason, count in report["rejected"].items():
        hours = f"{count['hours']:>10,.2f} h" if count["hours"] else ""
        lines.append(f"  left out     {count['clips']:>9,} clips  {reason:<16}{hours}")
    if report["rejected"]:
        lines.append(f"  every one of them with its reason: {folder}/rejected.jsonl")
    for kind, remark in report["remarks"].items():
        first = remark["examples"][0]
        first = first if isinstance(first, str) else " = ".join(first)
        lines.append(f"  note: {remark['clips']:,} clips {REMARKS[kind]} (the first: {first})")
        if remark.get("across_splits"):
            lines.append(f"  note: {remark['across_splits']:,} of these stand in validation and have a twin in train")
    if "validation" not in report["splits"] and report["arguments"]["validation_split_percentage"]:
        lines.append("  note: too few clips for any to be held out for validation: raise --validation_split_percentage")
    return "\n".join(lines)
