"""What examples/03 promises each team, on the real core without Ray."""

from __future__ import annotations

from pathlib import Path

from llmsched.core.decisions import Launch, Nominate, Resize
from llmsched.core.facts import Bound, Configured, NodeJoined, Resized, Submitted
from llmsched.core.invariants import violations
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.policies.registry import load as policies
from llmsched.spec import cluster
from llmsched.spec.compile import compile_configuration, compile_workload
from llmsched.spec.load import load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "03_two_teams_share_quota"


def test_a_borrower_shrinks_to_its_own_when_the_owner_comes_and_the_owner_gets_no_more_than_its_own() -> None:
    configuration = compile_configuration(cluster.load((EXAMPLE / "cluster.yaml").read_text()), version=1)
    taste = policies(configuration.policies)
    files = {name: load((EXAMPLE / name).read_text(), name) for name in ("vision.yaml", "language.yaml")}
    (detector,) = map(compile_workload, files["vision.yaml"])
    language = [compile_workload(each) for each in files["language.yaml"]]
    node = Node("n0", Resources(4000, 8000, 1 << 34), "A100")
    state = State()

    alone = turn(state, [Configured(0.0, configuration), NodeJoined(0.0, node), Submitted(1.0, detector)], taste)
    turn(state, [Bound(2.0, "detector/0", 1)], taste)
    both = turn(state, [Submitted(3.0, each) for each in language], taste)
    after = turn(state, [Resized(4.0, "detector/0", 1, 2)], taste)

    assert [len(each.placement) for each in alone.decisions if isinstance(each, Launch)] == [4]  # two are borrowed
    assert [len(each.placement) for each in both.decisions if isinstance(each, Resize)] == [2]
    assert [each.gang for each in both.decisions if isinstance(each, Nominate)] == ["translator/0"]
    assert [each.gang for each in after.decisions if isinstance(each, Launch)] == ["translator/0"]
    assert after.reasons["summariser/0"].code == "quota"
    assert violations(state) == []
