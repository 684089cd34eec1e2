"""Ray's own cluster launcher by its command line: what is wrong with a file, `ray up`, `ray down`, words to the head.

The file is one for `ray up`, such as those in cluster/. Ray, and so all work, runs as its `auth.ssh_user`. Where
`metadata: {llmsched: {login: ..., key: ...}}` names a login on the head that may become root, root runs the controller:
from code in /opt that work cannot change, in a home that work cannot read. Words to other programs are lists; ssh gives
the head one fixed line. Nothing here is needed by a controller. Start reading at `problems`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.errors import ClusterError, Problem, SpecError

LARGEST = 1 << 20  # bytes of a cluster file
PORT = 6379  # of Ray's GCS, where the file does not say
STDERR = 2
EXAMPLE = "cluster/onprem.yaml"
RAYS = "~/llmsched"  # where the files in cluster/ put the code, for Ray
OURS = "/opt/llmsched"  # where we put it on the head, for a controller of root
# The one that `ray start --head` takes by itself.
_ITS_ADDRESS = "python -c 'import ray; print(ray.util.get_node_ip_address())'"
_INSTALL = (  # as root, in its folder, with the Python that Ray's nodes have as well
    "umask 022; test -x .venv/bin/python || python3.11 -m venv .venv"
    " || (python3 -m venv .uv && .uv/bin/pip install --quiet uv && .uv/bin/uv venv --seed --python 3.11 .venv);"
    " .venv/bin/pip install --quiet --constraint .ci/constraints.txt --editable '.[models]'"
)
_RAY = [sys.executable, "-m", "ray.scripts.scripts"]
_SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "StrictHostKeyChecking=accept-new")
_NOBODYS = re.compile(r"\b(subnet-0{4}|sg-0{4})|:0{12}:")  # what stands in cluster/aws.yaml for an account's own
_OPTION = re.compile(r"--(node-ip-address|port|dashboard-host)[= ]([^\s\"']+)")


class RayFile(NamedTuple):
    """A cluster file of Ray's launcher that was read."""

    path: Path
    text: str
    data: dict[str, Any]

    def starts(self, part: str) -> str:
        """The commands of `head_start_ray_commands` or `worker_start_ray_commands` that start Ray."""
        return "\n".join(str(line) for line in self.data.get(part) or () if "ray start" in str(line))


class Login(NamedTuple):
    """Somebody who may log in on the head; `sudo`: and become root there, who runs the controller."""

    user: str
    key: str | None
    sudo: bool

    def words(self, file: RayFile) -> list[str]:
        """ssh and its options."""
        found = ["ssh", *(part for option in _SSH_OPTIONS for part in ("-o", option))]
        if self.key:
            found += ["-i", str(Path(self.key).expanduser())]
        if proxy := file.data["auth"].get("ssh_proxy_command"):
            found += ["-o", f"ProxyCommand={proxy}"]
        return found

    def as_root(self, command: str) -> str:
        return command if self.user == "root" else f"sudo -n -H {command}"


def login(file: RayFile) -> Login:
    """Whoever starts the controller: an operator, else the user that Ray runs as, which is single-user mode."""
    given = _operator(file)
    if given is not None:
        return Login(str(given.get("login")), str(given.get("key")), True)
    auth = file.data.get("auth") or {}
    return Login(str(auth.get("ssh_user")), auth.get("ssh_private_key"), False)


def _operator(file: RayFile) -> dict[str, Any] | None:
    metadata = file.data.get("metadata")
    found = metadata.get("llmsched") if isinstance(metadata, dict) else None
    return found if isinstance(found, dict) else None


def read(path: Path) -> RayFile:
    """Raises SpecError for a file that is none of Ray's launcher."""
    import yaml

    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(LARGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.", code="no_file") from None
    if len(text) > LARGEST:
        raise SpecError(f"{path} is larger than {LARGEST >> 20} MiB.", code="too_large")
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is no YAML: {error}.", code="yaml") from None
    if not isinstance(data, dict) or not isinstance(data.get("provider"), dict):
        raise SpecError(
            f"{path} is no cluster file of ray up: it has no provider.",
            code="cluster_file",
            hint="cluster/local.yaml, onprem.yaml and aws.yaml are such files; llmsched.yaml is not.",
        )
    return RayFile(path, text, data)


def check(file: RayFile) -> None:
    """Raises SpecError with everything that would go wrong, or would stand open, before a machine is touched."""
    found = list(problems(file))
    if found:
        raise SpecError.of(found)


def problems(file: RayFile) -> Iterator[Problem]:
    lines = file.text.splitlines()
    for number, line in enumerate(lines, 1):
        if re.search(r"\S.*#\s*CHANGE\b", line) or _NOBODYS.search(line.partition("#")[0]):
            what = f"{line.partition('#')[0].strip()} is still to be changed"
            yield Problem(f"{file.path}:{number}", what, "Put in yours, and take CHANGE out.", "change")

    def at(word: str) -> str:
        number = next((number for number, line in enumerate(lines, 1) if word in line.partition("#")[0]), 1)
        return f"{file.path}:{number}"

    head, workers = file.starts("head_start_ray_commands"), file.starts("worker_start_ray_commands")
    if "--head" not in head:
        yield Problem(
            at("head_start_ray_commands"), "no command starts Ray's head", "As in cluster/onprem.yaml.", "start"
        )
    for part, started in (("head_start_ray_commands", head), ("worker_start_ray_commands", workers)):
        if started and "RAY_AUTH_MODE=token" not in started:
            hint = "Write RAY_AUTH_MODE=token before ray start."
            yield Problem(at(part), "Ray would answer without a token", hint, "open")
    for number, line in enumerate(lines, 1):
        if "0.0.0.0" in line.partition("#")[0]:
            hint = "Use an address of the cluster's network."
            yield Problem(f"{file.path}:{number}", "it would listen for everybody, or let everybody in", hint, "open")
    host = _options(head).get("dashboard-host", "127.0.0.1")
    if host not in ("127.0.0.1", "localhost", "::1"):
        hint = "Use 127.0.0.1 and come in by ssh: ray attach -p 8265."
        yield Problem(at("dashboard-host"), f"the dashboard would listen on {host}", hint, "open")
    yield from _files(file, at)
    yield from _users(file, at)
    yield from _programs(file)
    if file.data["provider"].get("type") == "aws":
        yield from _aws(file, at)


def _files(file: RayFile, at: Any) -> Iterator[Problem]:
    auth = file.data.get("auth") or {}
    if not auth.get("ssh_user"):
        yield Problem(at("auth"), "nobody is named to log in as", "Set auth.ssh_user.", "auth")
    if key := auth.get("ssh_private_key"):
        yield from _key(at("ssh_private_key"), str(key))
    mounts = file.data.get("file_mounts") or {}
    if not any("auth_token" in str(target) for target in mounts) and "get-auth-token" not in str(file.data):
        hint = "Mount it, file_mounts: {~/.ray/auth_token: ~/.ray/auth_token}."
        yield Problem(str(file.path), "no node gets a token, so Ray would not start", hint, "auth")
    for source in mounts.values():
        path = Path(str(source)).expanduser()
        if not path.exists():
            token = "(umask 077; ray get-auth-token --generate > /dev/null) makes it."
            yield Problem(
                at(str(source)), f"{source} is not there", token if path.name == "auth_token" else "", "no_file"
            )
        elif path.name == "auth_token" and not path.read_text().strip():
            yield Problem(at(str(source)), f"{source} is empty", f"rm {source}; ray get-auth-token --generate", "auth")
        elif path.name == "auth_token" and path.stat().st_mode & 0o077:
            yield Problem(at(str(source)), f"{source} is open to others", f"chmod 600 {source}", "open")


def _key(place: str, key: str) -> Iterator[Problem]:
    path = Path(key).expanduser()
    if not path.is_file():
        yield Problem(place, f"{key} is not there", "ssh-keygen makes one.", "no_file")
    elif path.stat().st_mode & 0o077:
        yield Problem(place, f"{key} is open to others, and ssh will not take it", f"chmod 600 {key}", "open")


def _users(file: RayFile, at: Any) -> Iterator[Problem]:
    """That a controller of root is out of reach of what runs as Ray's user."""
    auth, metadata = file.data.get("auth") or {}, file.data.get("metadata")
    if not isinstance(metadata, dict) or "llmsched" not in metadata:
        return
    given, place = _operator(file), at("llmsched:")
    if given is None or set(given) != {"login", "key"} or not all(isinstance(one, str) for one in given.values()):
        hint = "Write llmsched: {login: USER, key: ~/.ssh/KEY}, of somebody who may become root on the head."
        yield Problem(place, "metadata.llmsched names no login with its key", hint, "auth")
        return
    if given["login"] == auth.get("ssh_user"):
        hint = "Let Ray have a user of its own, without sudo, as auth.ssh_user."
        yield Problem(place, f"{given['login']} is whom Ray runs as, and so all work", hint, "open")
    key, rays = Path(given["key"]).expanduser(), auth.get("ssh_private_key")
    yield from _key(place, given["key"])
    if rays is None or key.absolute() == Path(str(rays)).expanduser().absolute():
        hint = "Give auth.ssh_private_key a key of its own: Ray copies it to the head, where work can read it."
        yield Problem(at("auth"), "the key of Ray's user would let work in as the operator", hint, "open")


def _programs(file: RayFile) -> Iterator[Problem]:
    for name in ("ssh", "rsync"):
        if not shutil.which(name):
            yield Problem(
                str(file.path), f"there is no {name} on this machine", "Ray's launcher needs it.", "no_program"
            )


def _aws(file: RayFile, at: Any) -> Iterator[Problem]:
    import boto3

    region = file.data["provider"].get("region")
    if not region:
        yield Problem(at("provider"), "no region is named", "Set provider.region.", "aws")
    if boto3.session.Session(region_name=region).get_credentials() is None:
        yield Problem(at("provider"), "there are no AWS credentials here", "aws configure, or AWS_PROFILE.", "aws")


def _options(command: str) -> dict[str, str]:
    return dict(_OPTION.findall(command))


def check_config(file: RayFile, config: str) -> None:
    """That the llmsched.yaml which will be put in force on the head is a good one, where the head gets it from here.
    Raises SpecError with every problem of it."""
    from llmsched.spec import cluster

    mounts = dict(file.data.get("file_mounts") or {})
    if login(file).sudo:
        mounts[OURS] = _code(file)
    for target, source in mounts.items():
        there = f"{str(target).rstrip('/')}/"
        if config.startswith(there):
            path = Path(str(source)).expanduser() / config.removeprefix(there)
            try:
                cluster.load(path.read_text(), str(path))
            except OSError as error:
                message = f"cannot read {path}, which will be {config} there: {error.strerror}."
                raise SpecError(message, code="no_file") from None


# --- doing --------------------------------------------------------------------------------------------------------


def up(file: RayFile) -> None:
    """`ray up`, its words on our stderr. Raises ClusterError."""
    _ray(["up", "--yes", str(file.path)])


def down(file: RayFile) -> None:
    """`ray down`: nodes that were rented are ended. Raises ClusterError."""
    _ray(["down", "--yes", str(file.path)])


def _ray(words: Sequence[str]) -> None:
    done = subprocess.run([*_RAY, *words], stdin=subprocess.DEVNULL, stdout=STDERR, check=False)
    if done.returncode:
        raise ClusterError(
            f"ray {words[0]} ended with {done.returncode}.", code="launcher", hint="Its words are above."
        )


def _code(file: RayFile) -> str:
    """Where the checkout is here that Ray's nodes get."""
    return str((file.data.get("file_mounts") or {}).get(RAYS, "."))


def install(file: RayFile) -> None:
    """Put the code on the head for a controller of root, where nobody else can change it. Raises ClusterError."""
    who = login(file)
    excluded = [f"--exclude={one}" for one in file.data.get("rsync_exclude") or (".git", ".venv")]
    words = ["rsync", "--archive", "--delete", "--chown=root:root", "--chmod=go-w,go+rX", *excluded]
    words += [f"--rsync-path={who.as_root('rsync')}", "-e", shlex.join(who.words(file))]
    words += [f"{Path(_code(file)).expanduser()}/", f"{who.user}@{_head(file)}:{OURS}/"]
    ended = subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode
    ended = ended or on_head(file, who.as_root(f"sh -c {shlex.quote(f'cd {OURS}; {_INSTALL}')}"))
    if ended:
        raise ClusterError(
            f"llmsched could not be put into {OURS} on the head: that ended with {ended}.",
            code="controller",
            hint=f"What it said is above. {who.user} must be able to log in there, and to use sudo without a password.",
        )


def start_command(file: RayFile, *, storage: str | None = None, config: str | None = None) -> str:
    """What starts the controller on the head."""
    who = login(file)
    options = _options(file.starts("head_start_ray_commands"))
    port = options.get("port", str(PORT))
    address = options.get("node-ip-address")
    programs = f"{OURS if who.sudo else RAYS}/.venv/bin"
    words = [who.as_root("env")] if who.sudo else []
    words += ["RAY_AUTH_MODE=token", f"{programs}/llmsched", "up"]
    words += ["--address", f"{address}:{port}" if address else f'"$({programs}/{_ITS_ADDRESS}):{port}"']
    words += ["--ray-user", shlex.quote(str(file.data["auth"]["ssh_user"]))] if who.sudo else []
    for option, value in (("--storage", storage), ("--config", config)):
        words += [option, _quoted(value)] if value else []
    return " ".join(words)


def command(file: RayFile, *words: str, columns: int = 80) -> str:
    """A command of llmsched to the controller on the head, for a terminal of so many columns."""
    who = login(file)
    programs = f"{OURS if who.sudo else RAYS}/.venv/bin"
    line = " ".join([f"COLUMNS={columns}", f"{programs}/llmsched", *map(shlex.quote, words)])
    return who.as_root(f"env {line}") if who.sudo else line


def on_head(file: RayFile, command: str) -> int:
    """Run a line on the head by ssh; its exit code. 255 is ssh's own. Raises ClusterError when there is no head."""
    who = login(file)
    words = [*who.words(file), f"{who.user}@{_head(file)}", command]
    return subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode


def _head(file: RayFile) -> str:
    """Its address. Raises ClusterError when there is none."""
    asked = subprocess.run(
        [*_RAY, "get-head-ip", str(file.path)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    said = asked.stdout.split()
    if asked.returncode or not said:
        last = (asked.stderr.strip() or "it says nothing").splitlines()[-1]
        raise ClusterError(
            f"there is no head of {file.data.get('cluster_name')}: {last}",
            code="no_head",
            hint=f"Start it: llmsched cluster up {file.path}",
        )
    return said[-1]


def _quoted(path: str) -> str:
    """For the head's shell, which still opens a leading ~/."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)
