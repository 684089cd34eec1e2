"""The folder of one controller: its tokens, its lock, and the note that says where it answers.

    token  tokens.json  secret-key  controller.lock  controller.json  ports.json  started.json  isolation.json
    state.*  began  storage/  logs/

A token reads `llms_<id>_<secret>` with a secret of 256 bits; it is shown once, when it is made, and only its SHA-256
is kept; except the home's own, which whoever can read the folder may use. Imports little: the command line reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple

from llmsched import file_lock, sanitize
from llmsched.control.roles import ASKS_ENDPOINTS, CALLER, OPERATOR, ROLES, SUBMITTER
from llmsched.core.authorization import EVERYONE
from llmsched.errors import NotAllowed, RequestError, SpecError, StoreError
from llmsched.spec.endpoint_keys import PRIORITIES, Terms

RENAMED = {"admin": "operator"}  # roles of tokens made before


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is kept of a token. Stamps in seconds; `expires` None: never."""

    id: str
    sha256: str
    user: str
    role: str = SUBMITTER
    created: float = 0.0
    expires: float | None = None
    models: tuple[str, ...] = ()  # of a caller: the endpoints that its key reaches
    priority: str = Terms().priority
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


DAYS_AT_MOST = 36_500


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_token(
    user: str,
    role: str = SUBMITTER,
    days: float | None = 90,
    models: Sequence[str] = (),
    terms: Terms = Terms(),  # noqa: B008  cannot be changed
) -> tuple[str, TokenRecord]:
    """A fresh token, to be shown once, and what to keep of it. `models`: what a caller may ask, by its name. `terms`:
    on which its key asks endpoints."""
    if role not in (*ROLES, CALLER):
        raise SpecError(f'unknown role "{role}".', hint=f"Roles: {', '.join((*ROLES, CALLER))}.")
    if role == CALLER and not models:
        raise SpecError("a caller's key reaches no endpoint but those it names.", hint="Add --model NAME.")
    if role != CALLER and models:
        raise SpecError(f"--model goes with the role {CALLER}; a {role} reaches what the user may see.")
    if terms != Terms() and role not in ASKS_ENDPOINTS:
        raise SpecError(
            f"the role {role} asks no endpoint: a priority and limits mean nothing.", hint="Leave them out."
        )
    if terms.priority not in PRIORITIES:
        raise SpecError(f'unknown priority "{terms.priority}".', hint=f"Priorities: {', '.join(PRIORITIES)}.")
    if any(limit is not None and limit < 1 for limit in terms[1:]):
        raise SpecError("a limit of a minute is at least 1.", hint="To end what a key may do: llmsched token revoke.")
    if not user.strip() or user == EVERYONE or sanitize.line(user, sanitize.NAME_AT_MOST) != user:
        raise SpecError(f'"{user}" is no name of a user.', hint="Write a name such as alice.")
    if days is not None and not 0 < days <= DAYS_AT_MOST:  # also what is no number
        raise SpecError(f"a token cannot last {days:g} days.", hint=f"More than 0, at most {DAYS_AT_MOST:,}.")
    now = time.time()
    token_id = secrets.token_hex(4)
    token = f"llms_{token_id}_{secrets.token_hex(32)}"
    expires = now + days * 86400 if days else None
    return token, TokenRecord(token_id, digest(token), user, role, now, expires, tuple(models), *terms)


def create_token(
    home: Path,
    user: str,
    role: str,
    days: float | None,
    *,
    trusting: bool,
    models: Sequence[str] = (),
    terms: Terms = Terms(),  # noqa: B008  cannot be changed
) -> tuple[str, TokenRecord]:
    """A fresh token that counts from now on: it is to be shown once. Raises NotAllowed for a second person's where
    tokens are labels (a caller cannot run anything), unless `trusting`, and what `new_token` raises."""
    text, record = new_token(user, role, days, models, terms)
    why = single_user(home)
    if why and user != user_name() and role != CALLER and not trusting:
        raise NotAllowed(
            f"a token for {user} would be a label, not a boundary: this controller is in single-user mode ({why}).",
            code="single_user",
            hint="Whoever may submit could read every token and secret here. Where all trust each other: --trusting.",
        )
    save_records(home, [*made_records(home), record])
    return text, record


def prepare(home: Path) -> Path:
    """The folder, for its owner alone, with a token in it. Raises StoreError when it cannot be."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        if home.stat().st_mode & 0o077:
            home.chmod(0o700)
        (home / "logs").mkdir(exist_ok=True)
        own_token(home)
    except OSError as error:
        raise StoreError(
            f"cannot use the folder {home}: {error.strerror}.", hint="Set LLMSCHED_HOME to a folder of your own."
        ) from None
    return home


def own_token(home: Path) -> str:
    """The home's own token, an operator's; made (0600) when there is none."""
    file = home / "token"
    if not file.exists():
        write_private(file, new_token("operator", OPERATOR, days=None)[0] + "\n")
    return _read_token(file)


def _read_token(file: Path) -> str:
    """Raises StoreError for a file that holds none: no token at all must not be one."""
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if not token:
        raise StoreError(f"{file} holds no token.", hint="Remove it; llmsched up writes a new one.")
    return token


def secret_key_file(home: Path) -> Path:
    """The key that secrets are sealed with: LLMSCHED_SECRET_KEY_FILE, else in the home, beside the store."""
    given = os.environ.get("LLMSCHED_SECRET_KEY_FILE")
    return Path(given).expanduser().absolute() if given else home / "secret-key"


def user_name() -> str:
    return os.environ.get("USER") or "operator"


def load_records(home: Path) -> list[TokenRecord]:
    """Of the home's own token and of those made since."""
    own = home / "token"
    records = [TokenRecord("home", digest(_read_token(own)), user_name(), OPERATOR)] if own.exists() else []
    return records + made_records(home)


def made_records(home: Path) -> list[TokenRecord]:
    made = home / "tokens.json"
    try:
        found = [TokenRecord(**item) for item in json.loads(made.read_text())] if made.exists() else []
        return [replace(one, role=RENAMED.get(one.role, one.role), models=tuple(one.models)) for one in found]
    except (ValueError, TypeError):
        raise StoreError(f"{made} is damaged.", hint="Remove it; tokens made so far are then worthless.") from None


def save_records(home: Path, records: list[TokenRecord]) -> None:
    write_private(home / "tokens.json", json.dumps([asdict(record) for record in records], indent=1))


def write_private(file: Path, text: str) -> None:
    """Only the owner can read it, at no moment anyone else, and readers see the old or the new whole."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(descriptor)
    draft.replace(file)


# --- what lies between it and what it runs ----------------------------------------------------------------------


class Isolation(NamedTuple):
    """isolation.json, as the controller was started last. `mode`: two-users | single-user, with `why`; "" where nothing
    of a workload runs. `ray_user` is whom Ray runs as, `storage` where results lie."""

    mode: str = ""
    ray_user: str = ""
    why: str = ""
    storage: str = ""


def store_file(home: Path) -> Path:
    return home / "state.sqlite"


def proofs_of_use(home: Path) -> list[Path]:
    """What is made in a home only once a store is in it, beside the store's own files."""
    return [home / "isolation.json"]


def isolation(home: Path) -> Isolation | None:
    """None when no controller was started here yet."""
    try:
        return Isolation(**json.loads((home / "isolation.json").read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        raise StoreError(f"{home / 'isolation.json'} is damaged.", hint="Remove it; llmsched up writes it.") from None


def record_isolation(home: Path, found: Isolation) -> None:
    write_private(home / "isolation.json", json.dumps(found._asdict()))


def default_storage(home: Path) -> str:
    """Beside the home and not in it: where results lie is told to all work, and where the home lies is not."""
    return str(home.with_name(f"{home.name}-storage"))


def refuse_in_home(home: Path, storage: str) -> None:
    """Raises RequestError for results within the home: every workload is told where they lie."""
    if "://" in storage and not storage.startswith("file://"):
        return
    place, folder = Path(storage.removeprefix("file://")).expanduser().resolve(), home.resolve()
    if place.is_relative_to(folder):
        raise RequestError(
            f"results cannot lie in {storage}: all work is told where they lie, and it is in the home {home}.",
            code="storage_in_home",
            hint=f"Give --storage a folder of its own, or leave it out: {default_storage(home)}. Results that lie there"
            " already may be moved.",
        )


def single_user(home: Path) -> str:
    """Why tokens are labels here and no boundary; "" when they are one."""
    found = isolation(home)
    if found is not None:
        return found.why if found.mode == "single-user" else ""
    return "" if os.geteuid() == 0 else "only root can start Ray as another user"


# --- where it answers -------------------------------------------------------------------------------------------


class Ports(NamedTuple):
    """ports.json: where API and endpoints answered last, and shall again. 0: not chosen yet."""

    api: int = 0
    endpoint: int = 0


def ports(home: Path) -> Ports:
    try:
        return Ports(**{name: int(port) for name, port in json.loads((home / "ports.json").read_text()).items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return Ports()


def remember_ports(home: Path, found: Ports) -> None:
    write_private(home / "ports.json", json.dumps(found._asdict()))


def remember_start(home: Path, options: Sequence[str]) -> None:
    """started.json: the options that the controller was started with last."""
    write_private(home / "started.json", json.dumps(list(options)))


def started_with(home: Path) -> list[str]:
    """Of the last start; [] when none is known."""
    try:
        return [str(option) for option in json.loads((home / "started.json").read_text())]
    except (OSError, ValueError, TypeError):
        return []


# --- the controller of this home ----------------------------------------------------------------------------------


class Announcement(NamedTuple):
    """controller.json: where the controller of this home answers."""

    pid: int
    url: str
    started: float


def announce(home: Path, url: str) -> None:
    write_private(home / "controller.json", json.dumps(Announcement(os.getpid(), url, time.time())._asdict()))


def announced(home: Path) -> Announcement | None:
    """What the running controller says, or None when none runs here."""
    if not is_running(home):
        return None
    try:
        return Announcement(**json.loads((home / "controller.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def withdraw(home: Path) -> None:
    (home / "controller.json").unlink(missing_ok=True)


_held: list[IO[str]] = []  # open until the process is gone: only then is the home free


def hold(home: Path) -> None:
    """Be the only controller of this home from now on. Raises RequestError when another process is."""
    lock = (home / "controller.lock").open("a")
    if not _take(lock):
        lock.close()
        other = announced(home)
        raise RequestError(
            f"a controller runs on {home} already" + (f", at {other.url} (pid {other.pid})." if other else "."),
            code="already_running",
            hint="Stop it with llmsched down, or set LLMSCHED_HOME to another folder.",
        )
    _held.append(lock)


def _take(lock: IO[str]) -> bool:
    for _ in range(5):  # `is_running` holds it for an instant
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def is_running(home: Path) -> bool:
    return file_lock.is_held(home / "controller.lock")
