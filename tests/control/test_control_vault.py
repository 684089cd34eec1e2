"""Secrets: sealed where they lie, asked for at apply, delivered at launch, shown nowhere."""

from __future__ import annotations

import asyncio
import stat

import pytest
from control_harness import ANN, Script, controlling, fake_cluster, phase, task, until

from llmsched.control.vault import SHARED, Vault
from llmsched.core.render import text
from llmsched.errors import RequestError, SpecError, StoreError
from llmsched.store.memory import MemoryStore
from llmsched.store.tables import SecretRow

BOB = "bob"


def opened():
    store = MemoryStore()
    store.take_over("test", store.lease())
    return store


def put(vault, owner, name, value):
    return asyncio.run(vault.put(owner, name, value, by="someone"))


def test_a_value_comes_back_whole_and_lies_sealed(tmp_path):
    store = opened()
    vault = Vault(store, tmp_path / "key", lambda: 7.0)
    put(vault, ANN, "TOKEN", "grüße\ncanary")
    assert vault.value(ANN, "TOKEN") == "grüße\ncanary"
    (row,) = store.rows(SecretRow)
    assert "canary" not in repr(row) and row.at == 7.0
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert Vault(store, tmp_path / "key", lambda: 8.0).value(ANN, "TOKEN") == "grüße\ncanary"


def test_ones_own_comes_before_the_shared_one_and_is_nobody_elses(tmp_path):
    vault = Vault(opened(), tmp_path / "key", lambda: 1.0)
    put(vault, ANN, "TOKEN", "of ann")
    assert not vault.has(BOB, "TOKEN")
    put(vault, SHARED, "TOKEN", "for all")
    assert (vault.value(ANN, "TOKEN"), vault.value(BOB, "TOKEN")) == ("of ann", "for all")
    assert [(one.name, one.shared) for one in vault.known(ANN)] == [("TOKEN", True), ("TOKEN", False)]
    assert [one.shared for one in vault.known(BOB)] == [True]


def test_a_row_that_was_moved_to_another_owner_does_not_open(tmp_path):
    store = opened()
    vault = Vault(store, tmp_path / "key", lambda: 1.0)
    put(vault, ANN, "TOKEN", "of ann")
    asyncio.run(vault._write(store.row(SecretRow, ANN, "TOKEN")._replace(owner=BOB)))
    with pytest.raises(StoreError, match="does not open"):
        vault.value(BOB, "TOKEN")


def test_without_its_key_nothing_opens_and_no_new_key_takes_its_place(tmp_path):
    vault = Vault(opened(), tmp_path / "key", lambda: 1.0)
    put(vault, ANN, "TOKEN", "of ann")
    (tmp_path / "key").unlink()
    with pytest.raises(StoreError, match="is gone"):
        vault.value(ANN, "TOKEN")
    with pytest.raises(StoreError, match="is gone"):
        put(vault, ANN, "OTHER", "value")
    asyncio.run(vault.remove(ANN, "TOKEN", by=ANN))
    put(vault, ANN, "OTHER", "value")
    assert vault.value(ANN, "OTHER") == "value"


@pytest.mark.parametrize("value", ["", "abc", "x" * 70_000, "a\0bcdef"])
def test_a_value_that_could_not_be_kept_or_hidden_is_refused(tmp_path, value):
    with pytest.raises(SpecError):
        put(Vault(opened(), tmp_path / "key", lambda: 1.0), ANN, "TOKEN", value)


def test_a_removed_secret_is_unknown(tmp_path):
    vault = Vault(opened(), tmp_path / "key", lambda: 1.0)
    put(vault, ANN, "TOKEN", "value")
    asyncio.run(vault.remove(ANN, "TOKEN", by=ANN))
    assert vault.known(ANN) == [] and not vault.has(ANN, "TOKEN")
    with pytest.raises(RequestError) as caught:
        asyncio.run(vault.remove(ANN, "TOKEN", by=ANN))
    assert caught.value.code == "unknown_secret"


def test_a_missing_secret_is_refused_at_plan_and_apply_with_the_command_that_sets_it(tmp_path):
    async def story():
        store = MemoryStore()
        vault = Vault(store, tmp_path / "key", lambda: 1.0)
        async with controlling(store=store, vault=vault) as controller:
            spec = task("hush", secrets=["HF_TOKEN"])
            with pytest.raises(RequestError) as caught:
                await controller.submit([spec], user=ANN)
            assert caught.value.code == "missing_secret" and "llmsched secret set HF_TOKEN" in str(caught.value)
            (planned,) = await controller.plan([spec], user=ANN)
            assert planned.outcome == "refused"
            assert "llmsched secret set HF_TOKEN" in planned.reason.next_change
            assert controller.state.workloads == {}
            await vault.put(BOB, "HF_TOKEN", "of bob", by=BOB)  # no help for ann
            assert (await controller.plan([spec], user=ANN))[0].outcome == "refused"
            assert (await controller.plan([spec], user=BOB))[0].outcome == "created"

    asyncio.run(story())


def test_an_attempt_whose_secret_was_removed_does_not_start_without_it(tmp_path):
    async def story():
        store = MemoryStore()
        vault = Vault(store, tmp_path / "key", lambda: 1.0)
        cluster = fake_cluster(first=Script(runs_for_s=None), hush=Script(runs_for_s=None))
        async with controlling(cluster, store, vault=vault) as controller:
            await vault.put(ANN, "HF_TOKEN", "the value", by=ANN)
            retry = {"on_events": []}
            await controller.submit([task("first", 2, workers=2)], user=ANN)
            await until(lambda: phase(controller, "first") == "running")
            await controller.submit([task("hush", secrets=["HF_TOKEN"], retry=retry)], user=ANN)
            await vault.remove(ANN, "HF_TOKEN", by=ANN)
            await controller.cancel("first", ANN)
            await until(lambda: phase(controller, "hush") == "failed")
            assert "secret HF_TOKEN is not set" in text(controller.state.workloads["hush"].message)
            assert "llms/hush/0/1" not in cluster.launched

    asyncio.run(story())


def test_an_operator_who_changes_anothers_work_uses_that_ones_secrets(tmp_path):
    async def story():
        store = MemoryStore()
        vault = Vault(store, tmp_path / "key", lambda: 1.0)
        async with controlling(store=store, vault=vault) as controller:
            await controller.submit([task("hush")], user=ANN)
            await vault.put(BOB, "HF_TOKEN", "of bob", by=BOB)
            with pytest.raises(RequestError, match="HF_TOKEN is not set"):
                await controller.submit([task("hush", secrets=["HF_TOKEN"])], user=BOB, role="operator")

    asyncio.run(story())


def test_a_user_has_so_many_names_of_secrets_and_those_there_are_can_be_set_again(tmp_path, monkeypatch):
    monkeypatch.setattr("llmsched.control.vault.OF_ONE", 2)
    vault = Vault(opened(), tmp_path / "key", lambda: 7.0)
    for name in ("A", "B"):
        put(vault, ANN, name, "canary-1")
    asyncio.run(vault.remove(ANN, "B", by="someone"))
    with pytest.raises(RequestError, match="2 names of secrets were used"):
        put(vault, ANN, "C", "canary-2")
    put(vault, ANN, "A", "canary-3")
    put(vault, ANN, "B", "canary-3")
    put(vault, BOB, "C", "canary-4")
