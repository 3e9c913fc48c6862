"""The facts of a bundle, for a person to read."""

from typing import Any

from pipeline.deploy.predict import printable
from pipeline.deploy.read_bundle import Bundle

CLASSES_SHOWN, VALUES_SHOWN = 12, 8


def text(bundle: Bundle) -> str:
    """What someone who uses the student wants to know of its bundle.json."""
    facts = bundle.facts
    some = ", ".join(bundle.classes[:CLASSES_SHOWN])
    more = ", ..." if len(bundle.classes) > CLASSES_SHOWN else ""
    shape = f"N x {bundle.size} x {bundle.size} x {bundle.channels}"
    lines = [
        f"{bundle.name}: {len(bundle.classes)} classes ({some}{more})",
        f"input       uint8 images {shape}, tested with up to {bundle.max_batch} at once",
        f"transform   {facts['transform'].get('words', 'see bundle.json')}",
        f"output      logits and probabilities, N x classes{_calibrated(bundle)}",
    ]
    for format, entry in facts["formats"].items():
        kilobytes = round(facts["files"][entry["file"]]["bytes"], -3) // 1000
        lines.append(f"{format:<12}{entry['file']}, {kilobytes:,} kB{_remarks(entry)}")
    for title in ("metrics", "calibration", "latency", "provenance", "versions", "cpu"):
        lines += [f"{title:<12}{name} = {value}" for name, value in _flat(facts.get(title, {}))]
    lines.append(f"fingerprint {bundle.fingerprint}")
    return "\n".join(printable(line) for line in lines) + "\n"


def _calibrated(bundle: Bundle) -> str:
    return f"; calibrated: softmax(logits / {bundle.temperature:g})" if bundle.is_calibrated else ""


def _remarks(entry: dict[str, Any]) -> str:
    quality = _flat(entry.get("quality", {}))
    remarks = [f"{name} {value}" for name, value in quality if name in ("drop", "agreement", "snr_db")]
    if entry.get("accepted") is False:
        remarks.insert(0, "FAILED its gate, not used")
    if entry.get("portable"):
        remarks.append("portable")
    if entry.get("float_first"):
        remarks.append("first layer in float")
    if entry.get("deprecated"):
        remarks.append("deprecated by torch; loading it runs code")
    return f" ({', '.join(remarks)})" if remarks else ""


def _flat(facts: Any, above: str = "") -> list[tuple[str, str]]:
    """Nested facts as pairs of a dotted name and a text."""
    if isinstance(facts, dict):
        prefix = f"{above}." if above else ""
        return [pair for name, value in facts.items() for pair in _flat(value, f"{prefix}{name}")]
    if isinstance(facts, list):
        return [
            (
                above,
                ", ".join(map(str, facts[:VALUES_SHOWN])) + (", ..." if len(facts) > VALUES_SHOWN else ""),
            )
        ]
    return [(above, f"{facts:.4g}" if isinstance(facts, float) else str(facts))]
