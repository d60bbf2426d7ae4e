"""The one place where files that are written come to be: made exclusively, locked, named at last.

A name can be planted, taken, or become another file while a job runs. So a folder is held by its
descriptor; a file is made where nothing was, never followed through a link, locked for as long as
it is written, and is still the same file when it gets its name. Calls of the file system go through
the modules `os` and `fcntl` by name, so that tests can make the n-th fail.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from typing import Any

from fastattn.batch.errors import Busy, JobError, Refused, named

_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a planted pipe must not be waited for
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_LOCK_TRIES = 100


class Folder:
    """A folder held open: what is written into it stays together wherever it is moved."""

    def __init__(self, path: str) -> None:
        self.path = path
        with named(path, "be opened"):
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def join(self, name: str) -> str:
        """Return the path of a file in it, as messages show it."""
        return os.path.join(self.path, name)

    def status(self, name: str) -> os.stat_result | None:
        """Look at a file without following links; None where there is none."""
        try:
            with named(self.join(name), "be looked at"):
                return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except JobError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def check_place(self) -> None:
        """Refuse to go on where the path no longer leads to this folder."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):
                return
        where = ""
        with contextlib.suppress(OSError):
            where = os.readlink(f"/proc/self/fd/{self.descriptor}")
        if os.fstat(self.descriptor).st_nlink == 0 or where.endswith(" (deleted)"):
            raise Refused(
                f"{self.path}: this folder was removed while the job ran, with all that was "
                "finished; create it and start again"
            )
        raise Refused(
            f"{self.path}: this folder was moved while the job ran{where and ' to ' + where}; what "
            "is finished lies there: move it back, or give its new path, and run the command with "
            "--resume"
        )

    def sync(self) -> None:
        """Make the names in it durable."""
        with named(self.path, "be synced"):
            os.fsync(self.descriptor)

    def unlink(self, name: str) -> None:
        """Remove a file."""
        with named(self.join(name), "be removed"):
            os.unlink(name, dir_fd=self.descriptor)

    def close(self) -> None:
        """Let go of the folder; a second call does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class HeldFile:
    """A file in a folder that is open for writing and locked; its owner alone changes it.

    Use `create` where nothing may be there yet, and `reopen` for what an earlier run left.
    """

    def __init__(self, folder: Folder, name: str, descriptor: int, nameless: bool = False) -> None:
        self.folder = folder
        self.name = name
        self.descriptor = descriptor
        self._nameless = nameless

    @classmethod
    def create(cls, folder: Folder, name: str) -> "HeldFile":
        """Make a file of that name, which must be free.

        Raises
        ------
        FileExistsError
            Where the name is taken, by whatever it is.
        FileNotFoundError
            Where another process had the file and removed it, before it was locked.
        """
        flags = _OPEN | os.O_RDWR | os.O_CREAT | os.O_EXCL
        with named(folder.join(name), "be created", but=FileExistsError):
            descriptor = os.open(name, flags, 0o666, dir_fd=folder.descriptor)
        file = cls(folder, name, descriptor)
        try:
            # Another job may be asking just now whether the file is locked, and let go at once.
            if not _locked(descriptor, file.path, _LOCK_TRIES):
                raise busy(file.path, descriptor)
            file.insist_on_name()
        except BaseException as error:
            # Nothing of it is left, unless it has become another job's.
            if not isinstance(error, Busy) and _locked(descriptor, file.path):
                with contextlib.suppress(JobError):
                    file.remove()
            file.close()
            raise
        return file

    @classmethod
    def reopen(cls, folder: Folder, name: str) -> "HeldFile":
        """Open and lock a file that an earlier run left.

        Raises
        ------
        FileNotFoundError
            Where there is none, or not any more.
        """
        path = folder.join(name)
        with named(path, "be opened", but=FileNotFoundError):
            descriptor = os.open(name, _OPEN | os.O_RDWR, dir_fd=folder.descriptor)
        file = cls(folder, name, descriptor)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise JobError(f"{path}: expected a regular file that a job left; remove it")
            if not _locked(descriptor, path):
                raise busy(path, descriptor)
            file.insist_on_name()  # the job that had it may be over
        except BaseException:
            file.close()
            raise
        return file

    @property
    def path(self) -> str:
        """Where it lies, as messages show it."""
        return self.folder.join(self.name)

    @property
    def status(self) -> os.stat_result:
        """Size and number of names."""
        with named(self.path, "be looked at"):
            return os.fstat(self.descriptor)

    def is_named(self, name: str) -> bool:
        """Whether the file of that name is this one."""
        there = self.folder.status(name)
        return there is not None and os.path.samestat(there, self.status)

    def insist_on_name(self) -> None:
        """Raise FileNotFoundError where the file is not, or no more, the one of its name."""
        if not self.is_named(self.name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)

    def check(self) -> None:
        """Refuse to go on where the name has become another file's, or the folder has moved."""
        self.folder.check_place()
        if not self._nameless and not self.is_named(self.name):
            raise Refused(
                f"{self.path}: was removed or replaced while the job ran, and what was finished is "
                "lost; see who writes there, and start again with --overwrite instead of --resume"
            )

    def check_alone(self) -> None:
        """Refuse to write to a file that has other names, which may be anybody's."""
        names = self.status.st_nlink
        if names > 1:
            raise Refused(
                f"{self.path}: is one file with {names} names (hard links), and all of them would "
                "be written to; put a copy of it in its place (cp it, then mv the copy over it)"
            )

    def read(self, length: int, offset: int) -> bytes:
        """Read up to so many bytes."""
        with named(self.path, "be read"):
            return os.pread(self.descriptor, length, offset)

    def write(self, data: Any, offset: int) -> None:
        """Write all bytes of a buffer; they are durable only after `sync`."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        with named(self.path, f"take {len(view)} bytes at {offset}"):
            while len(view):
                done = os.pwrite(self.descriptor, view, offset)
                view, offset = view[done:], offset + done

    def truncate(self, size: int) -> None:
        """Cut the file."""
        with named(self.path, "be cut"):
            os.ftruncate(self.descriptor, size)

    def sync(self) -> None:
        """Wait until all that was written is on the disk. A failure here is final for the run."""
        with named(self.path, "be synced"):
            os.fsync(self.descriptor)

    def take_name(self, name: str, overwrite: bool) -> None:
        """Give the file its own name; without `overwrite`, only if that is free.

        Raises
        ------
        FileExistsError
            Where the name is taken.
        """
        self.check()
        folder = self.folder.descriptor
        with named(self.folder.join(name), "be given to the finished file", but=FileExistsError):
            if not overwrite and self._link(name):
                if not self._nameless:
                    os.unlink(self.name, dir_fd=folder)
            else:
                if self._nameless:  # which cannot replace anything
                    self._link(self.name)
                os.replace(self.name, name, src_dir_fd=folder, dst_dir_fd=folder)
        self.name, self._nameless = name, False
        self.check()

    def _link(self, name: str) -> bool:
        """Give a second name; False on a file system without, where a moment's race is left."""
        folder = self.folder.descriptor
        # Through /proc it is this file and no other, whatever has its old name by now. With a
        # folder's descriptor Python calls linkat, which alone follows the link in there.
        ways: list[tuple[str, dict[str, Any]]] = [
            (f"/proc/self/fd/{self.descriptor}", {"dst_dir_fd": folder}),
            (self.name, {"src_dir_fd": folder, "dst_dir_fd": folder, "follow_symlinks": False}),
        ]
        for source, options in ways:
            try:
                os.link(source, name, **options)
            except FileExistsError:
                raise
            except OSError:
                if self.folder.status(name) is not None:
                    raise
            else:
                return True
        return False

    def remove(self) -> None:
        """Remove the file from its folder, unless its name has become another's."""
        if self.is_named(self.name):
            self.folder.unlink(self.name)

    def close(self) -> None:
        """Close the file and so give up its lock; a second call does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def open_nameless(folder: Folder, spare: str) -> HeldFile:
    """Make a file that is gone if this process dies, or one of the name `spare`.

    Nameless files need a file system that knows them, and /proc, where they get their name from.
    """
    if os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError, AttributeError):
            flags = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
            descriptor = os.open(".", flags, 0o666, dir_fd=folder.descriptor)
            return HeldFile(folder, spare, descriptor, nameless=True)
    return HeldFile.create(folder, spare)


def remove_left(folder: Folder, name: str) -> None:
    """Remove what an earlier run left under a name, unless a job is at work on it."""
    with contextlib.suppress(FileNotFoundError):
        file = HeldFile.reopen(folder, name)
        with contextlib.closing(file):
            file.remove()


def refuse_taken(folder: Folder, name: str, what: str) -> None:
    """Refuse a name under which something lies that is not ours to replace."""
    found = folder.status(name)
    if found is None:
        return
    path = folder.join(name)
    if not stat.S_ISREG(found.st_mode):
        link = "a symbolic link, which is never followed" if stat.S_ISLNK(found.st_mode) else ""
        raise JobError(f"{path}: expected nothing, found {link or 'no regular file'}; remove it")
    try:
        HeldFile.reopen(folder, name).close()  # refuses where it is locked
    except FileNotFoundError:
        return
    raise JobError(
        f"{path}: is in the way of the temporary {what}, and no manifest says that this job left "
        "it; if no unfinished job needs it any more, remove it, else choose another output"
    )


def refuse_locked(folder: Folder, name: str) -> None:
    """Refuse to replace a file whose job has named it and is not over yet."""
    try:
        descriptor = os.open(name, _OPEN | os.O_RDONLY, dir_fd=folder.descriptor)
    except OSError:  # there is none, or one of somebody else's
        return
    try:
        if not _locked(descriptor, folder.join(name)):
            raise busy(folder.join(name), descriptor)
    finally:
        os.close(descriptor)


def busy(path: str, descriptor: int) -> Busy:
    """Say that another job has a file, and which process that is."""
    process = _lock_holder(descriptor)
    return Busy(
        f"{path}: another job{f' (process {process})' if process else ''} is writing this just "
        "now; wait for it, or choose another output"
    )


def _locked(descriptor: int, path: str, tries: int = 1) -> bool:
    """Lock a file until it is closed, or its process dies; False where another one has it."""
    for left in reversed(range(tries)):
        try:
            with named(path, "be locked", but=BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if left:
                time.sleep(0.01)
        except JobError as error:
            if getattr(error.__cause__, "errno", 0) in _NO_LOCKS:
                return True  # such a file system has none to offer
            raise
        else:
            return True
    return False


def _lock_holder(descriptor: int) -> int:
    """Find the process that has a file locked, where the system tells; else 0."""
    found = os.fstat(descriptor)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/locks") as locks:
        for line in locks:
            words = line.split()
            if words[1] == "FLOCK" and words[5] == place:
                return max(int(words[4]), 0)
    return 0
