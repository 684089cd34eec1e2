"""On what kind of file system a folder lies: on some, locks do not hold."""

from __future__ import annotations

from pathlib import Path

REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "lustre", "ceph", "glusterfs", "afs"}


def kind_of(folder: Path) -> str:
    """The type of the file system `folder` is on, "" where the kernel does not say."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    place = str(folder.resolve())
    for line in lines:
        _, mount, mounted_kind, *_ = line.split()
        under = place == mount or place.startswith(mount.rstrip("/") + "/")
        if under and len(mount) >= len(best):
            best, kind = mount, mounted_kind
    return kind
