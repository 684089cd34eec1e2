"""Asks how long deliveries take and who tips, reads how far off the week's forecast was, and lets a rush pass."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prepare import TARGET  # isort: skip  # it knows the way to measuring.py

import pandas
import yaml
from measuring import by_columns, rows_in, say, until
from sklearn.metrics import roc_auc_score

from llmsched import Client

DATA, AT_ONCE, LEAD_S = Path(__file__).parent / "data", 500, 10


def main() -> None:
    client = Client()
    begins = rush(client)
    learnt, tested = tables("deliveries")
    off = error(tested, [one["value"] for one in ask(client, "eta", rows_in(tested, TARGET))])
    usual = learnt.groupby(learnt["hour"].astype(int))[TARGET].median()
    say("eta", off, error(tested, tested["hour"].astype(int).map(usual)))
    say("eta_boosting", off, error(tested, by_columns(learnt, tested, TARGET, "boosting")))
    print(ask(client, "eta", rows_in(tested[:1], TARGET), explain=True)[0]["reason"])
    learnt, tested = tables("taxi")
    said, plain = ask(client, "tips", rows_in(tested, "tip")), by_columns(learnt, tested, "tip", "linear")["yes"]
    is_tipped = tested["tip"] == "yes"
    say("tips", roc_auc_score(is_tipped, [one["scores"]["yes"] for one in said]), roc_auc_score(is_tipped, plain))
    metrics = client.status("ridership-model").metrics
    say("ridership", metrics["eval.mae"], metrics["eval.mae_season"])
    until(lambda: answering(client) == 2, "two replicas answer", 150)
    say("rush", max(gang.started_at or 0.0 for gang in client.status("eta").gangs) - begins)
    until(lambda: answering(client) == 1, "one replica is left", 150)
    say("quiet", time.time() - begins - 60)


def rush(client: Client) -> float:
    """When it begins: with a minute that comes, and ends with that."""
    begins = (datetime.now(UTC) + timedelta(seconds=60 + LEAD_S)).replace(second=0, microsecond=0)
    specs = yaml.safe_load_all((DATA.parent / "spec.yaml").read_text())
    eta = next(one for one in specs if one["name"] == "eta")
    for bound, at in zip(eta["autoscaling"]["bounds"], (begins, begins + timedelta(minutes=1)), strict=True):
        bound["cron"] = f"{at.minute} {at.hour} * * *"
    (DATA / "rush.yaml").write_text(yaml.safe_dump(eta))
    client.apply(DATA / "rush.yaml")
    until(lambda: answering(client) == 1, "one replica answers before the rush")
    return begins.timestamp()


def answering(client: Client) -> int:
    return sum(gang.status == "running" for gang in client.status("eta").gangs)


def tables(name: str) -> tuple[Any, Any]:
    return pandas.read_csv(DATA / f"{name}-train.csv"), pandas.read_csv(DATA / f"{name}-test.csv")


def ask(client: Client, name: str, rows: list[dict[str, Any]], explain: bool = False) -> list[dict[str, Any]]:
    some = (rows[at : at + AT_ONCE] for at in range(0, len(rows), AT_ONCE))
    return [one for each in some for one in client.chat(name).post({"rows": each, "explain": explain})["said"]]


def error(tested: Any, said: Any) -> float:
    return float((tested[TARGET] - said).abs().mean())


if __name__ == "__main__":
    main()
