"""What a check gives back: facts for a line each, numbers, and findings that say what to change."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

SEVERITIES = ("warning", "note")  # results will suffer; worth a look


class Finding(NamedTuple):
    """One line: what it means, and the flag that changes it."""

    severity: str
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


@dataclass(frozen=True)
class Checked:
    """Of one check, or of several together."""

    facts: dict[str, str] = field(default_factory=dict)  # printed whatever they are
    numbers: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def warn(self, about: str, text: str) -> None:
        """Results will suffer."""
        self.findings.append(Finding("warning", about, text))

    def note(self, about: str, text: str) -> None:
        """Worth a look."""
        self.findings.append(Finding("note", about, text))

    def add(self, other: "Checked") -> "Checked":
        """Take over what another check has found."""
        self.facts.update(other.facts)
        self.numbers.update(other.numbers)
        self.findings.extend(other.findings)
        return other

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for what a script returns."""
        return {"facts": self.facts, **self.numbers, "findings": [each._asdict() for each in self.findings]}


def percent(part: float) -> str:
    """A share as people read it."""
    return f"{100 * part:.0f} %" if part >= 0.1 or not part else f"{100 * part:.2g} %"


def time_span(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s"


def in_hours(hours: float) -> str:
    """In the unit that suits it."""
    if hours >= 100:
        return f"{hours:,.0f} h"
    return f"{hours:.3g} h" if hours >= 0.01 else f"{hours * 3600:.3g} s"


def file_size(num_bytes: float) -> str:
    """In the unit that suits it."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e6:.0f} MB"
