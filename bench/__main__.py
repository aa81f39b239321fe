"""Run the bench and print its table.

    python -m bench                          everything: five minutes, 13 with all peers
    python -m bench --quick                  one short round of everything
    python -m bench --only full              one scenario (or several: --only full --only streams)
    python -m bench --columns direct,prototype

A run of everything also writes `bench/results/latest.json` and `bench/results/latest.svg`.
"""

import argparse
import resource
import signal
import statistics
import sys
from collections.abc import Sequence

from bench import picture, report
from bench.fleet import Fleet, Running, service_settings
from bench.footprint import footprint
from bench.rows import Results
from bench.scenarios import SCENARIOS, WARM_UP, Scenario, measure, order, parsing_ms
from bench.targets import PROJECT, LiteLLM, MLflow, Portkey, Prototype, Service, Target

RESULTS = PROJECT / "bench" / "results"
COLD_STARTS = 3


def main() -> int:
    options = arguments()
    allow_many_connections()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    targets = chosen_targets(options.columns)
    scenarios = [one for one in SCENARIOS if not options.only or one.name in options.only]
    if options.quick:
        scenarios = [scenario.quick() for scenario in scenarios]
    with Fleet() as fleet:
        results = run(fleet, targets, scenarios, everything=not options.only)
    print("\n" + report.table(results))
    for heading, lines in (
        ("Not answered as they should be:", report.failures(results)),
        ("The project's own bounds:", report.bounds(results)),
    ):
        if lines:
            print("\n" + "\n  ".join([heading, *lines]))
    if not (options.quick or options.only or options.columns):
        report.write_json(results, RESULTS / "latest.json")
        (RESULTS / "latest.svg").write_text(picture.draw(results))
        print(f"\nWritten: {RESULTS / 'latest.json'} and latest.svg")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="The bench.")
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument(
        "--only",
        action="append",
        choices=[scenario.name for scenario in SCENARIOS],
        help="only this scenario; may be repeated",
    )
    parser.add_argument("--columns", help="only these columns, comma-separated")
    return parser.parse_args()


def allow_many_connections() -> None:
    """Raise the limit of open files, for this process and all that it starts."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def chosen_targets(columns: str | None) -> list[Target]:
    """The gateways that are installed and asked for; it is said how to install the others."""
    wanted = columns.split(",") if columns else None
    everyone = (Service(), Prototype(service_settings()), LiteLLM(), Portkey(), MLflow())
    if wanted and (unknown := set(wanted) - {"direct", *(target.name for target in everyone)}):
        sys.exit(f"There is no column {', '.join(sorted(unknown))}.")
    targets: list[Target] = []
    for target in everyone:
        if wanted and target.name not in wanted:
            continue
        if target.installed():
            targets.append(target)
        else:
            print(f"{target.name}: not found. {target.install}")
    return targets


def run(
    fleet: Fleet, targets: Sequence[Target], scenarios: Sequence[Scenario], everything: bool
) -> Results:
    """Start everything, then give everybody the same work, in turns."""
    fleet_running = [fleet.start_mock()]
    results = Results(["direct", *(target.name for target in targets)])
    if everything:
        for target in targets:
            say(f"{target.name} alone: start, memory, size")
            measure_alone(fleet, target, results)
    for target in targets:
        say(f"starting {target.name}")
        fleet_running.append(fleet.start(target))
    warm_up(fleet_running)
    for scenario in scenarios:
        say(f"{scenario.name}: {scenario.about}")
        take_turns(fleet_running, scenario, results)
    return results


def warm_up(fleet_running: Sequence[Running]) -> None:
    """Work that does not count."""
    for scenario in WARM_UP:
        for route in scenario.routes:
            for running in fleet_running:
                measure(running.server, order(running.target, running.place, scenario, route))


def measure_alone(fleet: Fleet, target: Target, results: Results) -> None:
    """Time to start, memory while idle, and size on disk, with no other gateway running.

    Another one that runs the same Python would share its pages, and take a part of the memory.
    """
    name = target.name
    # The first start reads files from the disk, and compiles them where they are not compiled.
    count = COLD_STARTS if target.quick_start else 1
    starts = [fleet.start_alone(target) for _ in range(1 + count)][1:]
    results.cold_start[name] = statistics.median(start.cold_start for start in starts)
    results.idle_mib[name] = statistics.median(start.idle_mib for start in starts)
    found = footprint(target)
    if found:
        results.footprints[name] = found


def take_turns(fleet_running: Sequence[Running], scenario: Scenario, results: Results) -> None:
    """Every round gives each target the scenario once on each route."""
    for _ in range(scenario.rounds):
        for route in scenario.routes:
            for running in fleet_running:
                name = running.target.name
                if scenario.gateways_only and name == "direct":
                    continue
                work = order(running.target, running.place, scenario, route)
                found = measure(running.server, work, scenario.watch_memory)
                results.add(scenario, route, name, found)
                if scenario.messages > 1:
                    results.parsing_ms.setdefault(route, []).append(parsing_ms(work))


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
