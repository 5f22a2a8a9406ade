"""What was found in a package, as a table to read and as JSON for programs."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spoco_zoo.lint.finding import CONSUMERS, Consumer, Finding
from spoco_zoo.lint.linter import choose_consumers, lint_package

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Report:
    """The programs that a package was checked for, and everything found."""

    consumers: tuple[Consumer, ...]
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, location: Path, consumers: Collection[str]) -> "Report":
        """Check a package for these programs, or for those that suit it where none are given.

        Raises:
            PackageError: The package is missing, damaged or unsafe.
        """
        chosen = tuple(consumer for consumer in CONSUMERS if consumer in consumers)
        chosen = chosen or choose_consumers(location)
        return cls(chosen, tuple(lint_package(location, chosen)))

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def summary(self) -> str:
        """Counts and programs in a line."""
        warnings = len(self.findings) - self.errors
        return f"errors: {self.errors}, warnings: {warnings}, for {', '.join(self.consumers)}"

    def table(self) -> "Table":
        """Draw the findings, a section for each program, errors first."""
        from rich.table import Table
        from rich.text import Text

        table = Table("for", "", "finding")
        parts: tuple[Consumer, ...] = ("format", *self.consumers)
        for consumer in dict.fromkeys(parts):
            found = [finding for finding in self.findings if finding.consumer == consumer]
            for finding in sorted(found, key=lambda finding: finding.severity):
                table.add_row(consumer, finding.severity, Text(finding.message))
            if not found:
                table.add_row(consumer, "", "nothing")
            table.add_section()
        return table

    def to_json(self) -> str:
        """Write everything as JSON."""
        findings = [asdict(finding) for finding in self.findings]
        words = {"consumers": self.consumers, "errors": self.errors, "findings": findings}
        return json.dumps(words, indent=1)
