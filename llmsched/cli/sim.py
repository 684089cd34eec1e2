"""sim: the wind tunnel. Replays traces, scenarios and journals through the scheduler that runs the cluster."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import click

from llmsched.cli import show, terminal

FILE = click.Path(path_type=Path)


class _Seconds(click.FloatRange):
    """A length of time in seconds: neither negative, nor infinite, nor no number at all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number of seconds.", param, ctx)
        return seconds


SECONDS = _Seconds(min=0)


@click.group()
def sim() -> None:
    """The wind tunnel: traces, scenarios, replays."""


@sim.command()
@click.argument("trace", type=FILE)
@click.option(
    "--nodes",
    metavar="NxG:FLAVOR,...",
    help="Nodes x GPUs of each, such as 128x8:V100,64x4:T4. May be left out when the file has node_types.",
)
@click.option("--config", type=FILE, help="A cluster file (llmsched.yaml): queues, quotas, rules, policies.")
@click.option("--ordering", metavar="NAME", help="Ordering policy instead of the configured one.")
@click.option("--elasticity", metavar="NAME", help="Elasticity policy instead of the configured one.")
@click.option(
    "--backfill", type=click.Choice(("off", "easy", "conservative")), help="Start later work beside a blocked head."
)
@click.option(
    "--preempt",
    type=click.Choice(("on", "off")),
    help="Whether a better-ranked job may evict another. Left out: as the file has it; without a file on, which the "
    "orderings were measured with, while a controller without a cluster file evicts nobody (off).",
)
@click.option("--quantum", type=SECONDS, metavar="S", help="Seconds between two rankings of who runs.")
@click.option(
    "--duration-column", default="duration_s", metavar="NAME", show_default=True, help="Column with the run time."
)
@click.option("--estimates", default="exact", metavar="exact|none|column|error:0.5", help="What the scheduler is told.")
@click.option(
    "--steps/--no-steps",
    default=True,
    help="Whether jobs say how many steps they make, where the trace has it (never with --estimates none).",
)
@click.option(
    "--flavors/--no-flavors",
    default=True,
    help="Whether jobs say how long they take on which GPU, where the trace has it; else any GPU will do for them.",
)
@click.option("--restart-cost", type=SECONDS, default=0.0, metavar="S", help="Lost at every start and resize.")
@click.option(
    "--leave",
    type=SECONDS,
    default=1.0,
    show_default=True,
    metavar="S",
    help="How long a job that is told to leave holds its GPUs.",
)
@click.option("--elastic", metavar="MIN..MAX", help="Let every job run on MIN to MAX GPUs.")
@click.option(
    "--faults", metavar="MTBF[:REPAIR]", help="Mean seconds between failures of a node, and until it is back."
)
@click.option("--join", multiple=True, metavar="S=NODES", help="Nodes that join later, such as 3600=1x8:V100.")
@click.option(
    "--drain", multiple=True, metavar="NODE=FROM..TO", help="An operator drains n0, n1, ... and gives it back."
)
@click.option(
    "--startup-delay",
    type=SECONDS,
    metavar="S",
    help="From asking for a node of a type until it joins.",
)
@click.option(
    "--shortage", multiple=True, metavar="TYPE=FROM..TO", help="No node of that type starts in these seconds."
)
@click.option(
    "--endpoint",
    multiple=True,
    metavar="SPEC=RATE.csv,service=6s,...",
    help="An endpoint beside the jobs: its spec, requests a second over time (columns t_s, rate_rps), how long one "
    "holds a place in a replica (service; 6s..9s: alone, and where all places are taken), how long a replica takes to "
    "start (start=30s), after which wait a request is late (patience=10s), and the requests of the time before "
    "(past=RATE.csv), from which its load is expected.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of estimate errors, faults and requests.")
@click.option("--until", type=SECONDS, metavar="S", help="Stop the clock there.")
@click.option("--out", type=FILE, metavar="DIR", help="Write report.json, timeline.html and plots there.")
@show.json_option
def run(trace: Path, nodes: str | None, out: Path | None, **given: Any) -> None:
    """Replay TRACE (.csv or .csv.gz).

    Columns by name: job_id, submit_s, num_gpus, duration_s; optional queue (or vc), priority, min_gpus, max_gpus,
    user, model (or job_type), steps (or total_steps), flavor, estimated_s; start_s and leave_s, what its starts and its
    leaving take: one number, or "20 7.5" where the first takes 20 s and all that follow 7.5 s. Columns runtime_N_s are
    run times on N GPUs and make a job elastic; columns runtime_N_s:FLAVOR are the same on that kind of GPU, and the job
    runs on no other.
    """
    from llmsched.errors import SpecError
    from llmsched.sim import endpoints, faults, fleet, folder, provider, report, runtimes, setting, simulator
    from llmsched.sim.recorder import Recorder
    from llmsched.sim.traces import table

    machines = fleet.parse(nodes) if nodes is not None else ()
    jobs = table.read(trace, duration_column=given["duration_column"], elastic=_range(given["elastic"]))
    serving = tuple(endpoints.parse(text) for text in given["endpoint"])
    endpoints.check(serving, jobs)
    configuration = setting.configuration(
        jobs,
        file=given["config"],
        ordering=given["ordering"],
        elasticity=given["elasticity"],
        backfill=given["backfill"],
        preempt=None if given["preempt"] is None else given["preempt"] == "on",
        quantum_s=given["quantum"],
        restart_cost_s=given["restart_cost"],
    )
    configuration = simulator.with_queues(configuration, [endpoints.replica_of(each, "") for each in serving])
    if nodes is None and not any(kind.max for kind in configuration.node_types):
        raise SpecError(
            "is missing.", where="--nodes", hint="For example --nodes 16x8, or a --config with node_types to rent from."
        )
    options = simulator.Options(
        nodes=machines,
        configuration=configuration,
        estimates=runtimes.parse_estimates(given["estimates"], given["steps"], given["flavors"]),
        restart_cost_s=given["restart_cost"],
        leave_s=given["leave"],
        seed=given["seed"],
        until_s=given["until"],
        faults=faults.parse(given["faults"], given["seed"]) if given["faults"] else faults.Faults(),
        joining=fleet.parse_joining(given["join"], len(machines)),
        drains=fleet.parse_drains(given["drain"], machines),
        startup_s=provider.STARTUP_S if given["startup_delay"] is None else given["startup_delay"],
        shortages=provider.parse_shortages(given["shortage"], configuration),
        trace=str(trace),
        endpoints=serving,
    )
    if out is not None:
        folder.check(out)  # before the run, which may take minutes
    recorder = Recorder() if out is not None else None
    found = simulator.simulate(jobs, options, recorder)
    figures = report.figures(found)
    if out is not None and recorder is not None:
        folder.write(out, found, figures, recorder)
    if show.wants_json():
        terminal.echo(json.dumps(figures, indent=2))
        return
    terminal.echo(report.table(figures))
    if out is not None:
        terminal.echo(f"\n{out}/timeline.html shows who held each GPU when, and why each job waited.")


@sim.command()
@click.argument("file", type=FILE)
@show.json_option
@click.pass_context
def scenarios(ctx: click.Context, file: Path) -> None:
    """Check the decisions that the scenarios of FILE expect.

    Exits with 1 when one differs, with 2 when a row of the file is wrong; the others are run all the same.
    """
    from llmsched.sim.scenarios import run_file

    found = run_file(file)
    if show.wants_json():
        terminal.echo(json.dumps(found, indent=2))
    else:
        for row in found["results"]:
            if not row["passed"]:
                terminal.echo(f"{row['id']}: expected {row['expected']}, got {row['got']}. {row['why']}")
        terminal.echo(f"{found['passed']} passed, {found['failed']} failed")
    for problem in found["problems"]:
        terminal.echo(problem, err=True)
    if found["failed"]:
        ctx.exit(2 if found["problems"] else 1)


@sim.command()
@click.argument("journal", type=FILE)
@click.option("--until", metavar="TIME", help="Seconds as the journal counts them, or 2026-11-21T14:03:00.")
@click.option("--explain", metavar="NAME", help="Tell the story of one workload, and why it waits at the end.")
@show.json_option
def replay(journal: Path, until: str | None, explain: str | None) -> None:
    """Fold a controller's JOURNAL (state.sqlite) again, up to a time, and decide once more. Changes nothing."""
    from datetime import datetime

    from llmsched.api import event_text
    from llmsched.sim import replay as again

    replayed = again.replay(journal, until=_time(until), explain=explain)
    found = again.findings(replayed)
    names = again.names_in(replayed.state)
    story = [(each.seq, each.at, event_text.told(each.entry, names)) for each in replayed.written]
    if explain:
        found["explain"]["story"] = [{"seq": seq, "at": at, "text": text} for seq, at, text in story if text]
    if show.wants_json():
        terminal.echo(json.dumps(found, indent=2))
        return
    when = datetime.fromtimestamp(found["at"]).isoformat(sep=" ", timespec="seconds")
    later = f", {found['later_entries']:,} later ones left out" if found["later_entries"] else ""
    terminal.echo(f"{found['entries']:,} entries up to {when}{later}; state {found['digest'][:16]}")
    terminal.echo(
        ", ".join(f"{count} {phase}" for phase, count in sorted(found["workloads"].items())) or "no workloads"
    )
    for each in found["violations"]:
        terminal.echo(f"broken: {each}")
    if explain:
        about = found["explain"]
        terminal.echo(f"\n{about['workload']} is {about['phase']}. {about['message']}".rstrip())
        for line in about["story"]:
            clock = datetime.fromtimestamp(line["at"]).isoformat(sep=" ", timespec="seconds")
            terminal.echo(f"  {clock}  {line['text']}")
        for gang, message in about["waits"].items():
            terminal.echo(f"{gang} waits: {message}")
        return
    for gang, reason in found["waiting"].items():
        terminal.echo(f"{gang} waits: {reason['message']}")


@sim.command("import")
@click.argument("source", type=click.Choice(("slurm", "kueue", "gavel", "chronus", "openb")))
@click.argument("file", type=FILE)
@click.option("-o", "--output", type=FILE, help="The trace to write; default: FILE with the ending .csv.")
@click.option("--profiles", type=FILE, help="gavel: measured steps per second (gpu, job_type, num_gpus, steps_per_s).")
@show.json_option
def import_(source: str, file: Path, output: Path | None, profiles: Path | None) -> None:
    """Make a trace from the accounting of another scheduler, or from one that research published.

    \b
    slurm: what this prints, with the days that you want:
        sacct -a -X -S now-30days --parsable2
            -o JobID,User,Account,Partition,Submit,Start,End,ElapsedRaw,TimelimitRaw,AllocTRES
    \b
    kueue: what `kubectl get workloads -A -o json` prints.
    gavel, chronus, openb: the CSV (or .csv.gz) files of these papers; gavel needs --profiles.
    """
    from llmsched.errors import SpecError
    from llmsched.sim import fleet
    from llmsched.sim.traces import kueue, published, slurm, table

    text = _text(file)
    if source == "gavel":
        if profiles is None:
            raise SpecError(
                "is missing: a job of this trace is steps.", where="--profiles", hint="Give measured speeds."
            )
        found = published.gavel(text, str(file), _text(profiles))
    else:
        read = {"slurm": slurm.parse, "kueue": kueue.parse, "chronus": published.chronus, "openb": published.openb}
        found = read[source](text, str(file))
    target = output or (file.with_suffix("") if file.suffix == ".gz" else file).with_suffix(".csv")
    if target == file:
        raise SpecError(
            "the trace would overwrite what it is made from.", where=str(file), hint="Name another with -o."
        )
    table.write(found.jobs, target)
    if show.wants_json():
        counts = {"jobs": len(found.jobs), "left_out": found.left_out, "changed": found.changed}
        terminal.echo(json.dumps({**counts, "file": str(target)}))
        return
    terminal.echo(f"{len(found.jobs):,} jobs in {target}")
    for why, count in sorted(found.left_out.items()):
        terminal.echo(f"{count:,} left out: {why}")
    for what, count in sorted(found.changed.items()):
        terminal.echo(f"{count:,} {what}")
    terminal.echo(f"\nNext: llmsched sim run {shlex.quote(str(target))} --nodes {fleet.enough_for(found.jobs)}")


def _text(file: Path) -> str:
    """Bytes that are no UTF-8 (names of people and accounts, in old records) are kept as `\\xe9`: still told apart. So
    are odd zeros; those of UTF-16 stand in the first line already."""
    from llmsched.errors import SpecError
    from llmsched.sim.traces import table

    try:
        text = table.content(file).decode("utf-8-sig", "backslashreplace")
    except (OSError, EOFError) as error:
        raise SpecError(f"cannot be read: {error}.", where=str(file)) from None
    if "\0" in text.partition("\n")[0]:
        raise SpecError("is not text, or not in UTF-8.", where=str(file), hint="Convert it: iconv -f UTF-16 -t UTF-8.")
    return text.replace("\0", "\\x00")


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f'"{text}" is not MIN..MAX, such as 1..8.', param_hint="--elastic")
    return int(found[1]), int(found[2])


def _time(text: str | None) -> float | None:
    if text is None:
        return None
    from datetime import datetime

    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise click.BadParameter(f'"{text}" is neither seconds nor a time.', param_hint="--until") from None
