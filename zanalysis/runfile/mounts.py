"""Where a file lies: file systems that do not keep the order of writes, which SWMR depends on."""

from pathlib import Path

__all__ = ["MOUNTS", "network_filesystem"]

MOUNTS = Path("/proc/self/mounts")

_NETWORK = frozenset(
    (
        "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "gpfs", "lustre", "ncpfs", "nfs",
        "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs", "virtiofs", "wekafs",
    )
)  # fmt: skip
_LOCAL_FUSE = frozenset(
    ("fuse.ntfs-3g", "fuse.overlayfs", "fuse.fuse-overlayfs", "fuse.portal", "fuse.lxcfs", "fuse.vmhgfs-fuse")
)


def network_filesystem(path: Path, mounts: Path | None = None) -> str | None:
    r"""Return the kind of network file system that a file lies on.

    Args:
        path: the file; links are followed, and it need not exist yet.
        mounts: a table of mounts as Linux gives it, one a line, with the mount point and the type in its second
            and third column; ``/proc/self/mounts`` if None.

    Returns:
        The type, such as ``nfs4``, ``cifs`` or ``fuse.sshfs``; None for a local file system, and where it is not
        known (other systems than Linux).
    """
    try:
        table = (mounts or MOUNTS).read_text(errors="surrogateescape").splitlines()
        place = path.resolve()
    except (OSError, ValueError, RuntimeError):
        return None
    kind, depth = "", -1
    for line in table:
        columns = line.split(" ")
        if len(columns) < 3:
            continue
        point = Path(_unescaped(columns[1]))
        # What is mounted later on the same point hides what was there.
        if place.is_relative_to(point) and len(point.parts) >= depth:
            kind, depth = columns[2], len(point.parts)
    remote = kind in _NETWORK or (kind.startswith("fuse.") and kind not in _LOCAL_FUSE)
    return kind if remote else None


def _unescaped(point: str) -> str:
    # Blanks, tabs, line ends and backslashes stand there as three octal digits.
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point
