"""Run the bench and print its table.

python -m bench                          everything, written to results/latest.json and README.md
python -m bench --quick                  one short round of everything
python -m bench --only full              one scenario (or several: --only full --only streams)
python -m bench --columns "this service,prototype"
"""

import argparse
import resource
import signal
import statistics
import sys
from collections.abc import Sequence

from bench import table
from bench.peers import LiteLLM, MLflow, Portkey
from bench.scenarios import SCENARIOS, WARM_UP, Scenario, measure
from bench.servers import Fleet, Running, idle_memory
from bench.table import Results
from bench.targets import PROJECT, SERVICE, Direct, Limited, Prototype, Service, Target, limited

RESULTS = PROJECT / "bench" / "results" / "latest.json"
README = PROJECT / "bench" / "README.md"
COLD_STARTS = 3


def main() -> int:
    options = arguments()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # also of what is started
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped
    scenarios = [one for one in SCENARIOS if not options.only or one.name in options.only]
    if options.quick:
        scenarios = [scenario.quick() for scenario in scenarios]
    targets = chosen_targets(options.columns)
    results = Results(["direct", *(target.name for target in targets)])
    with Fleet() as fleet:
        run(fleet, targets, scenarios, results, everything=not options.only)
    print("\n" + table.table(results))
    for heading, lines in (
        ("Not answered as they should be:", table.failures(results)),
        ("The project's own bounds:", table.bounds(results)),
    ):
        if lines:
            print("\n" + "\n  ".join([heading, *lines]))
    if not (options.quick or options.only or options.columns):
        table.write_json(results, RESULTS)
        table.write_readme(results, README)
        print(f"\nWritten: {RESULTS}, and the table in {README}")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="The bench.")
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--only", action="append", choices=names, help="may be repeated")
    parser.add_argument("--columns", help="only these columns, comma-separated")
    return parser.parse_args()


def chosen_targets(columns: str | None) -> list[Target]:
    """The gateways that are asked for and installed; of the others it is said."""
    wanted = columns.split(",") if columns else None
    everyone = (Service(), Prototype(), LiteLLM(), Portkey(), MLflow())
    targets = [one for one in everyone if not wanted or one.name in wanted]
    for target in targets:
        if not target.installed():
            say(f"{target.name}: not found; {README} says how to install it.")
    return [target for target in targets if target.installed()]


def run(
    fleet: Fleet,
    targets: Sequence[Target],
    scenarios: Sequence[Scenario],
    results: Results,
    everything: bool,
) -> None:
    """Start everything, then give everybody the same work, in turns."""
    all_running = [fleet.start(Direct(), fleet.upstream)]
    if everything:
        for target in targets:
            say(f"{target.name} alone: start, memory, size")
            results.alone[target.name] = measured_alone(fleet, target)
    wants_limits = any(one.limits for one in scenarios) and SERVICE in results.columns
    for target in [*targets, *(limited() if wants_limits else [])]:
        say(f"starting {target.name}")
        try:
            all_running.append(fleet.start(target))
        except (RuntimeError, OSError) as error:
            say(f"{target.name} is left out: {error}")
    for scenario in WARM_UP:
        for running in all_running:
            for route in scenario.routes:
                measure(running, scenario, route)
    for scenario in scenarios:
        say(scenario.name)
        take_turns(all_running, scenario, results)


def measured_alone(fleet: Fleet, target: Target) -> dict[str, float]:
    """Time to start, memory while idle, and size on disk, with no other gateway running.

    Another one that runs the same Python would share its pages, and take a part of the memory.
    """
    # The first start reads files from the disk, and compiles them where they are not compiled.
    count = COLD_STARTS if target.quick_start else 1
    starts, memory = [], []
    try:
        for _ in range(1 + count):
            running = fleet.start(target)
            starts.append(running.cold_start)
            memory.append(idle_memory(running.server))
            running.server.stop()
    except (RuntimeError, OSError) as error:
        say(f"{target.name}: {error}")
        return {}
    return {
        "cold start": statistics.median(starts[1:]),
        "idle MiB": statistics.median(memory[1:]),
        **target.size(),
    }


def take_turns(all_running: Sequence[Running], scenario: Scenario, results: Results) -> None:
    """Every round gives each target the scenario once on each route."""
    for _ in range(scenario.rounds):
        for route in scenario.routes:
            for running in all_running:
                if takes_part(running.target, scenario):
                    found = measure(running, scenario, route)
                    results.add(scenario, route, running.target.name, found)


def takes_part(target: Target, scenario: Scenario) -> bool:
    if scenario.limits:
        return isinstance(target, Service)  # with them and without
    is_gateway = target.name != "direct"
    return not isinstance(target, Limited) and (is_gateway or not scenario.gateways_only)


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
