"""What a bundle says of itself, for a person."""

from typing import Any

from pipeline.deploy.bundle import Bundle
from pipeline.deploy.predict import printable


def text(bundle: Bundle) -> str:
    """The facts of bundle.json that somebody who uses the student wants to know."""
    facts = bundle.facts
    lines = [
        f"{bundle.name}: {len(bundle.classes)} classes ({', '.join(bundle.classes[:12])}{', ...' if len(bundle.classes) > 12 else ''})",
        f"takes       uint8 images N x {bundle.size} x {bundle.size} x {bundle.channels}, at most {bundle.max_batch} at once",
        f"transform   {facts['transform'].get('words', 'see bundle.json')}",
        "gives       logits and probabilities, N x classes",
    ]
    for format, entry in facts["formats"].items():
        kilobytes = facts["files"][entry["file"]]["bytes"] / 1000
        lines.append(f"{format:<12}{entry['file']}, {kilobytes:,.0f} kB{_remark(entry)}")
    for title in ("metrics", "latency", "provenance", "versions", "cpu"):
        lines += [f"{title:<12}{name} = {value}" for name, value in _flat(facts.get(title, {}))]
    lines.append(f"fingerprint {bundle.fingerprint}")
    return "\n".join(printable(line) for line in lines) + "\n"


def _remark(entry: dict[str, Any]) -> str:
    said = [f"{name} {value}" for name, value in _flat(entry.get("quality", {})) if name in ("drop", "agreement", "snr_db")]
    if entry.get("accepted") is False:
        said.insert(0, "REJECTED by its gate")
    if entry.get("portable"):
        said.append("portable")
    if entry.get("float_first"):
        said.append("first layer in float")
    if entry.get("deprecated"):
        said.append("deprecated by torch; loading it runs code")
    return f" ({', '.join(said)})" if said else ""


def _flat(facts: Any, above: str = "") -> list[tuple[str, str]]:
    if isinstance(facts, dict):
        return [pair for name, value in facts.items() for pair in _flat(value, f"{above}{'.' if above else ''}{name}")]
    if isinstance(facts, list):
        return [(above, ", ".join(map(str, facts[:8])) + (", ..." if len(facts) > 8 else ""))]
    return [(above, f"{facts:.4g}" if isinstance(facts, float) else str(facts))]
