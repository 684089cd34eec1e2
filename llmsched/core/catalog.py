"""Every sentence that is said of work: code -> template. `say` writes the codes, `render.py` makes the words.

A template names its arguments in braces. A reference becomes the name that the reader's `Names` give it, or, when the
reader may not know it, words that name nobody. After a colon stands how an argument is written:

    {need:gpus}     thousandths of GPUs, as people write them: 12 or 0.5
    {left:#worker}  a count with its noun: 1 worker, 3 workers
    {why:>: }       nothing when there is nothing to say, else with `: ` in front
    {any:| or }     several, with ` or ` between them, and all that each of them holds
    {loss:.3g}      a number, as Python writes it

Tests hold every `say` of the house against this table: each code is here, with the arguments that its template names.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """`advice`: for a reason the smallest change that would start it, for a refusal what to try next."""

    text: str
    advice: str = ""


CATALOG: dict[str, Entry] = {
    "quote": Entry("{text}"),
    # Why a gang waits. The part in front of the dot is the code of the Reason.
    "impossible.no_node": Entry("needs {size} x {each}; no node has that", "a node that is large enough joins"),
    "impossible.too_large": Entry(
        "needs {size} x {each}; not even an empty node holds one of them", "a node that is large enough joins"
    ),
    "impossible.too_few": Entry(
        "needs {size} x {each}; the cluster has {have:gpus} such GPUs in all", "a node that is large enough joins"
    ),
    "over_limit.queue": Entry(
        'queue "{queue}" may use at most {most:gpus} GPUs; this gang needs {need:gpus}',
        "ask for less, choose another queue, or have its quota raised",
    ),
    "quota.used": Entry(
        'queue "{queue}" uses {used:gpus} GPUs (its own: {own:gpus}) and may take {free:gpus} more; this gang needs '
        "{need:gpus}",
        "{short:gpus} GPUs of quota are released",
    ),
    "quota.borrowed": Entry(
        'queue "{queue}" uses {used:gpus} GPUs (its own: {own:gpus}, {borrowed:gpus} of them borrowed) and may take '
        "{free:gpus} more; this gang needs {need:gpus}",
        "{short:gpus} GPUs of quota are released",
    ),
    "quota.fixed": Entry(
        'work that may not be preempted may not borrow: queue "{queue}" owns {own:gpus} GPUs, {fixed:gpus} of them '
        "are held by such work, and this gang needs {need:gpus}",
        "set preemption.enabled: true, or raise the nominal quota",
    ),
    "nodes.none": Entry("the cluster has no nodes yet", "a node joins"),
    "nodes.busy": Entry(
        "needs {size} x {each}{group:> for }; {fitting} fit now on {nodes:#node}{drained:>, }",
        "room for {missing} more is released",
    ),
    "nodes.beside": Entry(
        "needs {size} x {each} with {lacking} beside each; the most that a node has left beside the first: {most}",
        "{lacking} are released beside {each}, for {missing} more",
    ),
    "nodes.of_group": Entry("{group}"),
    "nodes.drained": Entry("{count} of them drained"),
    "nodes.reserved": Entry(
        "its reservation {reserved} has found {found} of {asked} GPUs: others have the rest, or reserved it before",
        "others end, or one of the reservations that are open then is moved or made smaller: llmsched reservations",
    ),
    "nodes.unfit": Entry("not enough room", "something is released"),
    "nodes.unfit_group": Entry('not enough room for group "{group}"', "something is released"),
    "topology.unfit": Entry("no domain has room", "something is released"),
    "fragmentation.spread": Entry(
        "needs {size} x {each}; {free:gpus} GPUs are free but only {fitting} such bundles fit on single nodes",
        "{missing} more bundles fit on single nodes",
    ),
    "topology.domain": Entry(
        "needs {size} x {each} in one {level}; at most {best} fit in any",
        "set topology: any, or free {missing} in one {level}",
    ),
    "victims_leaving.leave": Entry("waits for {who} to leave", "they have left"),
    "victims_leaving.unnamed": Entry("waits for what runs there to leave", "they have left"),
    "victims_leaving.shrink": Entry("waits for {gives}", "they have left"),
    "release": Entry("{who} to release {amount:gpus} GPUs"),
    "release.some": Entry("{who} to become smaller"),
    "release.all": Entry("{who} to leave"),
    "reservation.no_end": Entry(
        "free GPUs are reserved ({reserved}) and nothing bounds how long it runs",
        "give it a max_runtime that ends before the reservation",
    ),
    "reservation.too_long": Entry(
        "free GPUs are reserved ({reserved}) and it could not end in time",
        "give it a max_runtime that ends before the reservation",
    ),
    "order.behind": Entry("waits behind {who}, which is first in line", "{who} starts"),
    "order.would_delay": Entry(
        "would delay {who}, which is planned to start first", "give it a max_runtime that ends before that start"
    ),
    "order.outranked": Entry("the GPUs it could have do more for others now", "others end"),
    "dependency.after": Entry("waits for {who} to succeed", "{first} succeeds"),
    "dependency.schedule": Entry('waits for its schedule "{schedule}" (UTC)', "its time comes"),
    "backoff.failed": Entry("tries again after a pause: {message}", "nothing to do"),
    "backoff.silent": Entry("tries again after a pause: its last attempt failed", "nothing to do"),
    "capacity_coming.asked": Entry("{wants}; asked for {coming}", "a node that was asked for joins"),
    "nodes_of": Entry("{count} x {type}"),
    # When somebody who waits probably starts, and by what that is known.
    "eta.pause": Entry("end of the pause"),
    "eta.schedule": Entry("its schedule"),
    "eta.between": Entry("when it has waited long enough to begin though it leaves for the next reservation"),
    "eta.window": Entry("when a reservation ends"),
    "eta.delay": Entry("when it may make others leave"),
    "eta.shield": Entry("when others have run for as long as they are left alone"),
    "eta.evictions": Entry("when others may be evicted again"),
    "eta.quantum": Entry("when others may change their size again"),
    "eta.ranking": Entry("when everybody is ranked again"),
    "eta.sizes": Entry("when sizes are chosen again"),
    "eta.count": Entry("when past use is counted again"),
    "eta.planned": Entry("when planned starts are looked at again"),
    "eta.policy": Entry("when the preemption policy is asked again"),
    "eta.line": Entry("when the line is put in order again"),
    "eta.ends": Entry("when {who} ends{basis:>, }"),
    "basis.declared": Entry("by its declared limit"),
    "basis.estimate": Entry("by its estimate"),
    "basis.steps": Entry("{steps:,.0f} steps as fast as in the last {runs} runs of {model}"),
    "basis.run": Entry("as its last run{by:> by } of {model}"),
    "basis.runs": Entry("as three in four of its last {runs} runs{by:> by } of {model}"),
    # Why something was decided.
    "launch.promised": Entry("the places promised to it are free"),
    "launch.part": Entry("room for {size} of {most}"),
    "launch.whole": Entry("room for all of it"),
    "launch.apart": Entry("room for it on a node without another replica"),
    "launch.beside": Entry("room for it, on no node without another replica"),
    "launch.ranked": Entry("ranks among the best that fit"),
    "launch.before": Entry("it ran before"),
    "withdraw.unfit": Entry("it does not fit any more"),
    "withdraw.outranked": Entry("{who} has the better right to it"),
    "makes_room": Entry("makes room for {who}"),
    "makes_room.gives": Entry(
        "makes room for {who}: gives {given:gpus} GPUs, and its restart costs {lost:.3g} GPU-seconds"
    ),
    "taken.in_queue_priority": Entry("makes room for higher-ranked {who}"),
    "taken.quota_reclaim": Entry("gives back quota that belongs to {who}"),
    "taken.reclaim_while_borrowing": Entry("makes room for the borrowing {who}"),
    "taken.fair_share": Entry("gives its surplus to {who}"),
    "preempt.consolidation": Entry("moves together with others so that {who} fits"),
    "preempt.faster_flavor": Entry("moves to {flavor}, where it is faster"),
    "preempt.reservation": Entry("its GPUs are reserved for {reserved}"),
    "preempt.superseded": Entry("its spec changed"),
    "preempt.node_leaves": Entry("node {node} is about to leave"),
    "preempt.node_drain": Entry("node {node} is drained"),
    "resize.asked": Entry("asked to have {size}"),
    "resize.beyond_share": Entry("gives back what is beyond its share"),
    "resize.reservation": Entry("gives back GPUs that are reserved for {reserved}"),
    "resize.grows": Entry("grows from {before} to {size}"),
    "drain.replaced": Entry("a new version has taken its place"),
    "drain.passed_over": Entry("a newer version came before it had answered"),
    "drain.surplus": Entry("{wanted} replicas are wanted now"),
    "stop.max_runtime": Entry("stopped: over its max_runtime"),
    "stop.deadline": Entry("stopped: past its deadline"),
    "stop.budget": Entry("stopped: over its budget of {hours:g} GPU hours"),
    "stop.excess": Entry(
        "stopped: through Ray it took {excess} beyond what its gang was given, for {seconds:g} s; in a Ray of its own "
        "(kind: ray) that would wait"
    ),
    "scale.load": Entry("load asks for {replicas}"),
    "scale.bounds": Entry("its bounds of this time are {least} to {most}"),
    "scale.slo": Entry("load asks for {replicas}: {target} holds up to {load:.3g} requests at a replica"),
    "scale.ahead": Entry(
        "{replicas} ahead of the load: about {load:.3g} requests within {within:.0f} s, as at these hours of yesterday "
        "and a week ago"
    ),
    "scale.late": Entry(
        "{replicas}, as requests wait, none answers, and what starts has taken longer than a start does ({took:.0f} s)"
    ),
    "scale.weighed": Entry(
        "{replicas} of {asked} that load asks for, as {who} makes more of the GPUs: about {within:.1f} % of the "
        "requests hold the target, of {full:.1f} % with all"
    ),
    "scale.held_back": Entry("It has {why}."),
    "scale.side": Entry("load has crossed what they take, and is watched"),
    # What an endpoint is to hold, and what is expected of it.
    "slo.ttft_p95": Entry("first tokens within {seconds:g} s (p95)"),
    "slo.tpot_p95": Entry("{seconds:g} s for each further token (p95)"),
    "slo.latency_p95": Entry("answers within {seconds:g} s (p95)"),
    "slo.unmeasured": Entry("{target}: not measured yet, so target_ongoing_requests counts"),
    "slo.holds": Entry(
        "{target}: holds up to {load:.3g} requests at a replica{on:>, on }; measured {took:.3g} s at {at:.3g}"
    ),
    "slo.unreachable": Entry(
        "{target}: not reachable with any number{on:>, on }: it took {took:.3g} s with {at:.3g} in flight",
        "a faster GPU, a smaller model, or a longer target",
    ),
    "slo.short": Entry(
        "{target}: not reachable with {most} x {each}: {load:.3g} requests need {needed}, as one holds it up to "
        "{one:.3g}; measured {took:.3g} s at {at:.3g}",
        "a larger replicas.max, a faster GPU, or a longer target",
    ),
    "ahead.known": Entry(
        "expects {load:.3g} requests within {within:.0f} s ({low:.3g} to {high:.3g}); such forecasts are {error:.0%} "
        "off"
    ),
    "ahead.wrong": Entry("its forecasts are {error:.0%} off, so nothing is made of them"),
    "ahead.unknown": Entry("no forecast yet: it needs a day of this endpoint's load"),
    # Of an endpoint whose prompts another one is to read: why that one does not.
    "prefill.missing": Entry('reads its prompts itself: its owner has no endpoint "{name}" (serve.prefill)'),
    "prefill.stopped": Entry('reads its prompts itself: "{name}" (serve.prefill) is stopped'),
    "prefill.failed": Entry('reads its prompts itself: "{name}" (serve.prefill) has failed{why:>: }'),
    "prefill.waits": Entry('reads its prompts itself: "{name}" (serve.prefill) has no replica that answers{why:>: }'),
    "prefill.unlike": Entry('reads its prompts itself: "{name}" (serve.prefill) reads none of this model and type'),
    # Who gave what to whom.
    "gift": Entry("{gpus:gpus} GPUs of {who}, which lost {lost:.3g} GPU-seconds"),
    "handover": Entry("{seconds:.3g} s after it was asked for{gifts:>, on }"),
    "handover.last": Entry("its last replica answered {came}"),
    "capacity.demand": Entry("{gangs} gangs wait for nodes"),
    "release.idle": Entry("idle for {idle:g} s"),
    "schedule.skipped": Entry("run {run} still goes on"),
    "give_up.failed": Entry("gave up: {who}, which it comes after, failed"),
    "give_up.deadline": Entry("gave up: its deadline passed while it waited"),
    "give_up.cancelled": Entry("gave up: {who}, which it comes after, was cancelled"),
    # What became of a workload or a gang.
    "cancelled": Entry("cancelled"),
    "ended_by": Entry("ended by {who}, which had asked for it"),
    "ended_with": Entry("ended with {who}, which had asked for it"),
    "cancelled_by": Entry("cancelled by {by}"),
    "rollout_held": Entry("the rollout is held, replicas of the version before go on: the new one failed{message:>: }"),
    "node_lost": Entry("node {node} was lost"),
    "lost": Entry("lost without a receipt"),
    "attempt_failed": Entry("the attempt failed"),
    "failed_after": Entry("{message} (after {attempts} attempts)"),
    # What a submission does to others.
    "others.shrinks": Entry("{who} shrinks from {before} to {size}"),
    "others.grows": Entry("{who} grows from {before} to {size}"),
    "others.preempted": Entry("{who} is preempted"),
    "others.drained": Entry("{who} is drained"),
    "others.waits": Entry("{who} waits"),
    # Why a command is refused, and what to do.
    "unchanged.workload": Entry("{who} is as it was"),
    "unchanged.cancel": Entry("{who} is being cancelled already"),
    "unchanged.scale": Entry("{who} is asked for {size} already"),
    "unchanged.configuration": Entry("the configuration is as it was"),
    "unknown_workload": Entry('no workload is called "{name}"', "See: llmsched status"),
    "unknown_workload.near": Entry('no workload is called "{name}"', 'Did you mean "{near}"?'),
    "unknown_dependency": Entry(
        '{who} comes after {name}, and no workload is called "{name}"',
        "Apply {name} first, or in the same file before it.",
    ),
    "ended.succeeded": Entry("{who} has succeeded already"),
    "ended.failed": Entry("{who} has failed already"),
    "parent_over": Entry("{who}: {parent} has ended or is to end, and so asks for nothing more"),
    "ended.cancelled": Entry("{who} has been cancelled already"),
    "ended.change_succeeded": Entry(
        "{who} has succeeded; what has ended cannot change", "To run the changed spec: llmsched apply --again"
    ),
    "ended.change_failed": Entry(
        "{who} has failed; what has ended cannot change", "To run the changed spec: llmsched apply --again"
    ),
    "ended.change_cancelled": Entry(
        "{who} has been cancelled; what has ended cannot change", "To run the changed spec: llmsched apply --again"
    ),
    "ended.scale_succeeded": Entry("{who} has succeeded"),
    "ended.scale_failed": Entry("{who} has failed"),
    "ended.scale_cancelled": Entry("{who} has been cancelled"),
    "conflict.cancelling": Entry("{who} is being cancelled", "Wait until it is gone, then --again."),
    "conflict.kind": Entry("{who} is a {kind} and cannot become a {other}", "Choose another name."),
    "unknown_queue": Entry('{who}: no queue is called "{name}"', "Known queues: {known}."),
    "unknown_queue.near": Entry('{who}: no queue is called "{name}"', 'Did you mean "{near}"?'),
    "impossible.workers": Entry("{who}: workers {least}..{most} is no range"),
    "impossible.sizes": Entry("{who}: a size lies outside {least}..{most}"),
    "impossible.replicas": Entry("{who}: replicas {least}..{most} is no range"),
    "cycle.itself": Entry("{who} would wait for itself"),
    "cycle.path": Entry("{who} would wait for itself: {path:| -> }", "Break the circle in after:."),
    "impossible.after_serve": Entry(
        "{who} would wait for {other}, which serves and never ends", "Leave it out of after:."
    ),
    "impossible.after_failed": Entry(
        "{who} comes after {other}, which has failed", "Run {other} again first: llmsched apply --again"
    ),
    "impossible.after_cancelled": Entry(
        "{who} comes after {other}, which has been cancelled", "Run {other} again first: llmsched apply --again"
    ),
    "impossible.deadlines": Entry(
        "{who}: every run of its schedule would have the same deadline", "Bound each run by max_runtime: instead."
    ),
    "impossible.deadline": Entry("{who}: its deadline passed {ago:.0f} s ago", "Give it a later one, or leave it out."),
    "impossible.schedule": Entry("{who}: {problem}"),
    "too_many.workers": Entry(
        "{who} asks for {count} workers; one workload may have {limit}",
        "Ask for fewer, or have limits.max_workers raised.",
    ),
    "too_many.replicas": Entry(
        "{who} asks for {count} replicas; one workload may have {limit}",
        "Ask for fewer, or have limits.max_replicas raised.",
    ),
    "too_many.gangs": Entry(
        "{who} would be its owner's gang number {count}; a user may have {limit} in work that has not ended",
        "Wait, cancel some, or have limits.max_gangs_per_user raised.",
    ),
    "too_many.bytes": Entry(
        "with {who} the specs of its owner's work that has not ended would have {count} bytes; a user may have {limit}",
        "Wait, cancel some, keep data out of specs, or have limits.max_spec_bytes_per_user raised.",
    ),
    "too_many.children": Entry(
        "{who}: {parent} has {limit} workloads that it asked for and that have not ended, which is the limit",
        "Wait until one of them has ended, or end one.",
    ),
    "too_deep": Entry(
        "{who}: {parent} was itself asked for by a workload, and such work may ask for nothing",
        "Ask for it in the workload above.",
    ),
    "queue_full": Entry(
        'queue "{queue}" has {limit} gangs waiting, which is its limit', "Wait, or raise limits.max_pending_per_queue."
    ),
    "impossible.accelerator": Entry(
        "{who}: no such accelerator: {wanted:| or }; the cluster has: {there}",
        "Ask for one of these, or leave resources.accelerators out.",
    ),
    "impossible.no_accelerator": Entry(
        "{who}: no such accelerator: {wanted:| or }; the cluster has: no accelerator",
        "Ask for one of these, or leave resources.accelerators out.",
    ),
    "impossible.labels": Entry("{who}: no node is labelled {wish}", "See: llmsched nodes"),
    "impossible.no_spot": Entry("{who}: it asks for spot capacity; no node that it may use is", "See: llmsched nodes"),
    "impossible.only_spot": Entry(
        "{who}: it asks for no spot capacity; every node that it may use is", "See: llmsched nodes"
    ),
    "impossible.one_worker": Entry(
        "{who}: one worker asks for {need}; the largest node has {largest}",
        "Ask for less per worker and for more workers.",
    ),
    "impossible.one_worker_of": Entry(
        "{who}: one worker asks for {need}; the largest node with {flavor} has {largest}",
        "Ask for less per worker and for more workers.",
    ),
    "impossible.one_replica": Entry(
        "{who}: one replica asks for {need}; the largest node has {largest}",
        "Ask for less per worker and for more workers.",
    ),
    "impossible.one_replica_of": Entry(
        "{who}: one replica asks for {need}; the largest node with {flavor} has {largest}",
        "Ask for less per worker and for more workers.",
    ),
    "impossible.in_all": Entry(
        "{who} needs {count} bundles of {need}; the whole cluster holds {there}", "Ask for at most {most} workers."
    ),
    "impossible.together": Entry(
        "{who}: each of its groups would fit on empty nodes, but not all of them at once",
        "Ask for less in one of them; see: llmsched nodes",
    ),
    "impossible.no_level": Entry("{who}: no node has a {level}", "Leave topology.required out."),
    "impossible.level": Entry(
        "{who} needs {count} bundles in one {level}; the largest holds {there}",
        "Ask for fewer workers, or topology.preferred: {level}.",
    ),
    "over_limit.quota": Entry(
        '{who} needs {need:gpus} GPUs{flavor:> of }; queue "{queue}" may use at most {most:gpus}',
        "Ask for less, choose another queue, or have its quota raised.",
    ),
    "over_limit.fixed": Entry(
        '{who} needs {need:gpus} GPUs{flavor:> of }; queue "{queue}" may use at most {most:gpus} for work that may '
        "not be preempted",
        "Ask for less, choose another queue, or have its quota raised.",
    ),
    "over_limit.workers": Entry(
        "{who} has workers {least}..{most}; {size} is outside",
        "Change workers: in the spec, or choose {least}..{most}.",
    ),
    "over_limit.replicas": Entry(
        "{who} has replicas {least}..{most}; {size} is outside",
        "Change replicas: in the spec, or choose {least}..{most}.",
    ),
    "no_revision.kind": Entry("{who} is no endpoint: only endpoints go back to an earlier revision"),
    "no_revision.ended": Entry("{who} has ended", "Apply its file again."),
    "no_revision.none": Entry(
        "no earlier revision of {who} has answered: there is none to go back to", "Change its spec, and apply it."
    ),
    "no_revision.newest": Entry("{who} is at revision {revision} already", "llmsched status {who} lists the others."),
    "no_revision.unknown": Entry("{who} has no revision {revision} that answered", "Those that did: {known}"),
    "over_limit.size": Entry("{who} cannot have {size} workers", "Possible: {sizes}"),
    "conflict.reserved": Entry(
        'reservation "{reserved}" was made by {by} with llmsched reserve',
        "Choose another name in the file, or cancel that one: llmsched reserve {reserved} --cancel",
    ),
    "conflict.reservation": Entry(
        'there is a reservation "{reserved}" already', "Choose another name, or cancel that one first."
    ),
    "impossible.window": Entry('reservation "{reserved}" would be over before now', "Choose a later start."),
    "unknown_queue.reservation": Entry('no queue is called "{name}"', "Known queues: {known}."),
    "impossible.reservation": Entry(
        'reservation "{reserved}" asks for {need:gpus} {flavor}; there are at most {there:gpus}',
        "llmsched nodes shows what there is.",
    ),
    "unknown_reservation": Entry('no reservation is called "{name}"', "See: llmsched reservations"),
    "unknown_node": Entry('no node is called "{name}"', "See: llmsched node list"),
    "unknown_node.near": Entry('no node is called "{name}"', 'Did you mean "{near}"? See: llmsched node list'),
    "ambiguous_node": Entry('several nodes are called "{name}"', "Give the id of one of them: {ids:| or }"),
    "conflict.drained": Entry(
        "node {node} is drained already, by {by}", "Give another --by, or: llmsched node undrain {node}"
    ),
    "conflict.undrained": Entry("node {node} is not drained", "See: llmsched node list"),
    "conflict.leaves": Entry("nobody drains node {node}: the cluster says that it takes it away", "Wait for another."),
    "impossible.past": Entry("node {node} would have been empty {ago:.0f} s ago", "Give a time to come, as --by 30m."),
    "conflict.in_file": Entry(
        'reservation "{reserved}" stands in the cluster file', "Take it out there: llmsched config FILE"
    ),
    "name_taken": Entry('the name "{name}" is not free: {who} answers to it.'),
    "cycle.cohorts": Entry("cohorts form a circle: {path:| -> }", "Give one of them parent: null."),
    "conflict.queue": Entry(
        'queue "{queue}" is missing and {who} is still in it',
        "Keep the queue until its work has ended, or cancel the work first.",
    ),
    "overlap": Entry(
        'reservation "{reserved}" overlaps {who}, which runs on {node}, may not be preempted and is not known to end '
        "before",
        "Choose other nodes or a later start, or cancel that work first.",
    ),
    # What happened and what was decided, as a story tells it of the workload at hand.
    "event.submitted": Entry('submitted in queue "{queue}": {wish}'),
    "event.submitted_by": Entry('submitted by {by} in queue "{queue}": {wish}'),
    "event.changed": Entry('changed in queue "{queue}": {wish}'),
    "event.changed_by": Entry('changed by {by} in queue "{queue}": {wish}'),
    "wish": Entry("{size} x ({each:| or })"),
    "wish.range": Entry("{least}..{most} x ({each:| or })"),
    "wish.beside": Entry("{each}, each with {beside:|, }"),
    "wish.group": Entry("{count} x {group} ({each:| or })"),
    "event.ended_by_parent": Entry("ended by the work that had asked for it"),
    "event.scaled": Entry("asked to hold {size}"),
    "event.rolled_back": Entry("goes back to revision {revision}"),
    "event.adapter_rolled_back": Entry('its adapter {name} goes back to that of {origin}{by:>, asked for by }'),
    "event.rolled_back_by": Entry("goes back to revision {revision}, asked for by {by}"),
    "event.configured": Entry("configuration version {version} is in force"),
    "event.node_joined": Entry("node {node} joined: {has:| or }"),
    "event.node_lost": Entry("node {node} is lost"),
    "event.node_draining": Entry("node {node} will leave: nothing new goes there"),
    "event.drain_begun": Entry(
        "{by} drains node {node}: nothing new goes there, and what runs there leaves{within:> }"
    ),
    "event.drain_within": Entry("within {seconds:.0f} s"),
    "event.drain_ended": Entry("{by} ends the drain of node {node}"),
    "event.foreign_use": Entry("{used} are in use on node {node} beyond what gangs were given"),
    "event.excess": Entry("takes {excess} beyond its gang, through Ray, on {nodes}"),
    "event.excess_over": Entry("is within its gang again"),
    "event.stalled": Entry("does not move: {message}"),
    "event.stalled_over": Entry("moves again"),
    "event.bound": Entry("runs"),
    "event.bound_again": Entry("runs (attempt {attempt})"),
    "event.took": Entry("{runs}; its start took {steps:|, }"),
    "took.queue": Entry("{seconds:.1f} s in the queue"),
    "took.process": Entry("{seconds:.1f} s for its process"),
    "took.fork": Entry("{seconds:.1f} s for its process (a fork of one that had imported)"),
    "took.packages": Entry("{seconds:.1f} s for packages"),
    "took.imports": Entry("{seconds:.1f} s for imports"),
    "took.load": Entry("{seconds:.1f} s to load"),
    "took.first_token": Entry("{seconds:.2f} s to its first token"),
    "event.bound_after": Entry("{runs}, {came}"),
    "event.launch_failed": Entry("attempt {attempt} did not start ({event}){message:>: }"),
    "event.resized": Entry("holds {size:#bundle} now"),
    "event.finished": Entry("{outcome}{message:>: }{metrics:> }"),
    "metrics": Entry("[{metrics}]"),
    "metric": Entry("{name} {value:.4g}"),
    "event.released": Entry("let go of everything it held"),
    "event.lost": Entry("attempt {attempt} is lost{message:>: }"),
    "event.checkpoint": Entry("checkpoint at step {step}"),
    "event.checkpoint_of": Entry("checkpoint at step {step} ({fraction:.0%} of the work)"),
    "event.takes_back": Entry("serves the model that its spec names, in place of the one that was published"),
    "event.published": Entry('its {kind}{name:> } is published to "{target}"'),
    "event.kept": Entry('its {kind}{name:> } is kept for an endpoint "{target}", which is not there'),
    "event.adapter_loaded": Entry("serves adapter {name}"),
    "event.adapter_refused": Entry("could not load adapter {name}: {message}"),
    "event.unlisted": Entry("{by} took it off the list of Ray's jobs"),
    "event.command": Entry("{by} runs a command beside rank {rank}: {words}"),
    "event.launch": Entry("starts on {where}{why:>: }"),
    "event.launch_again": Entry("starts (attempt {attempt}) on {where}{why:>: }"),
    "event.nominate": Entry("is promised room on {where} while {victims} make way{why:>: }"),
    "event.withdraw": Entry("is promised no room any more{why:>: }"),
    "event.resize": Entry("is resized to {size:#bundle} on {where}{why:>: }"),
    "event.preempt": Entry("must make way within {grace:g} s ({reason}){why:>: }"),
    "event.preempt_for": Entry("must make way for {who} within {grace:g} s ({reason}){why:>: }"),
    "event.drain": Entry("finishes what it serves (at most {grace:g} s), then stops{why:>: }"),
    "event.stop": Entry("is stopped ({reason}){why:>: }"),
    "event.scale": Entry("wants {replicas:#replica}{why:>: }"),
    "event.load_adapter": Entry("is asked to load adapter {name}"),
    "event.request_capacity": Entry("asks for nodes: {wanted}{why:>: }"),
    "event.request_none": Entry("asks for nodes: none{why:>: }"),
    "event.release_node": Entry("gives node {node} back{why:>: }"),
    "event.assign": Entry("reservation {reserved} takes GPUs of {where}{why:>: }"),
    "event.run_due": Entry("run {run} is due"),
    "event.run_skipped": Entry("leaves its schedule out once{why:>: }"),
    "event.give_up": Entry("is given up ({reason}){why:>: }"),
    "on_node": Entry("{node} ({bundles})"),
    # What `why` tells of work that does not wait.
    "why.runs": Entry("on {where}{why:>: }"),
    "why.leaves": Entry("{runs}; it leaves: {why}"),
    "why.moves": Entry("{runs}; node {node} is to be empty: another replica is made first"),
    "why.stalled": Entry("{runs}; it does not move: {message}"),
    "why.excess": Entry("{runs}; through Ray it takes {excess} beyond its gang{ends:>, }"),
    "why.excess_ends": Entry("and is ended in {seconds:.0f} s if it goes on"),
    "why.not_looked_at": Entry("it has not been looked at yet."),
    "why.replicas_wait": Entry("{waiting} of {all} replicas wait: {why}"),
}  # fmt: skip
