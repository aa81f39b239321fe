"""The table, the verdict on the project's own bounds, and the JSON of a run's results."""

import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from bench.rows import (
    NOTHING,
    ROWS,
    Results,
    added_latency,
    cpu_per_request_ms,
    long_talk_ratio,
    of,
)
from bench.scenarios import CROWD, FLAT_OUT, FULL, ROUTES, STREAMS

SERVICE, PROTOTYPE, PEERS = "this service", "prototype", ("Portkey", "MLflow")


def table(results: Results) -> str:
    """The rows that were measured, as a Markdown table."""
    lines = [["", *results.columns]]
    for row in ROWS:
        cells = [row.cell(results, column) for column in results.columns]
        if any(cell != NOTHING for cell in cells):
            lines.append([row.name, *cells])
    widths = [max(len(line[number]) for line in lines) for number in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    padded = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(f"| {line} |" for line in padded)


def failures(results: Results) -> list[str]:
    """What went wrong, one line for each scenario, route and column where anything did."""
    lines = []
    for (scenario, route, column), rounds in results.measurements.items():
        total: dict[str, int] = {}
        for found in rounds:
            for why, count in found.outcome.failures.items():
                total[why] = total.get(why, 0) + count
        if total:
            told = ", ".join(f"{count} times {why}" for why, count in total.items())
            lines.append(f"{scenario}, {route}, {column}: {told}")
    return lines


def bounds(results: Results) -> list[str]:
    """The project's own bounds, each with the figure of this run."""
    lines: list[str] = []

    def bound(what: str, value: float | None, most: float | None, least: bool = False) -> None:
        if value is None:
            return
        if most is None:
            lines.append(f"-       {what}: nothing to compare with")
            return
        held = value >= most if least else value <= most
        sign = "≥" if least else "≤"
        lines.append(f"{'held  ' if held else 'MISSED'}  {what}: {value:,.2f} ({sign} {most:,.2f})")

    faults = sum(
        sum(found.outcome.failures.values())
        for (_scenario, _route, column), rounds in results.measurements.items()
        if column == SERVICE
        for found in rounds
    )
    bound("answers not as they should be", faults, 0)
    for route in ROUTES:
        cpu = cpu_per_request_ms(FULL)
        own, bare = cpu(results, SERVICE, route), cpu(results, PROTOTYPE, route)
        if own and bare:
            bound(f"{route}: CPU of a full answer over the prototype's", own / bare, 1.25)
        streams = cpu_per_request_ms(STREAMS)
        for peer in PEERS:
            bound(
                f"{route}: CPU ms of a full answer, against {peer}'s",
                own,
                cpu(results, peer, route),
            )
        bound(
            f"{route}: CPU ms of a stream, against Portkey's",
            streams(results, SERVICE, route),
            streams(results, "Portkey", route),
        )
        bound(f"{route}: added latency, ms", added_latency(results, SERVICE, route), 2.5)
        bound(
            f"{route}: 500 messages less their bytes, over 1",
            long_talk_ratio(results, SERVICE, route),
            2.0,
        )
        rate = of(FLAT_OUT, lambda found: found.outcome.words_rate)(results, SERVICE, route)
        bound(f"{route}: chunks/s flat out", rate, 50_000, least=True)
        first = of(STREAMS, lambda found: found.outcome.first_p50)
        direct = first(results, "direct", route)
        if direct is not None:
            bound(f"{route}: first token p50, ms", first(results, SERVICE, route), direct + 20)
    intact = results.median(CROWD, "openai", SERVICE, lambda found: found.outcome.intact)
    bound("1000 streams at once: intact", intact, 1000, least=True)
    at_once = results.median(CROWD, "openai", SERVICE, lambda found: found.outcome.at_once)
    bound("1000 streams at once: open at one time", at_once, 1000, least=True)
    memory = results.median(CROWD, "openai", SERVICE, lambda found: found.peak_mib)
    bound("1000 streams at once: MiB in all", memory, 200)
    bound("idle memory, MiB", results.idle_mib.get(SERVICE), 60)
    bound("cold start, s", results.cold_start.get(SERVICE), 0.6)
    if SERVICE in results.footprints:
        bound("installed, MiB", results.footprints[SERVICE].mib, 25)
        bound("packages", results.footprints[SERVICE].packages, 19)
    return lines


def write_json(results: Results, file: Path) -> None:
    """The table's figures and every round behind them."""
    rounds = [
        {"scenario": scenario, "route": route, "column": column, **asdict(found)}
        for (scenario, route, column), measured in results.measurements.items()
        for found in measured
    ]
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "columns": results.columns,
        "rows": [
            {
                "name": row.name,
                "routes": list(row.routes),
                "values": {column: row.values(results, column) for column in results.columns},
            }
            for row in ROWS
        ],
        "rounds": rounds,
    }
    file.parent.mkdir(exist_ok=True)
    lines = [f"{json.dumps(key)}: {_json(value)}" for key, value in document.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _json(value: object) -> str:
    """A value as JSON, a list with one item a line."""
    if isinstance(value, list):
        items = ",\n  ".join(json.dumps(item, ensure_ascii=False) for item in value)
        return f"[\n  {items}\n]"
    return json.dumps(value, ensure_ascii=False)
