"""The one place where mistakes become exit 2; and the command that goes on with what was stopped."""

from __future__ import annotations

import errno
import os
import select
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import UserError

USER_MISTAKE = 2
# as a shell says of a program that SIGPIPE has ended
NOBODY_READS = 141
# Where all processes fail alike, the launcher ends the others within this time of the first one's exit.
SECONDS_BEFORE_REPEATING = 5.0
# transmamba_kernels.backend's own (a test compares): importing it is importing torch
KERNELS, KERNEL_PATHS = "TRANSMAMBA_KERNELS", ("reference", "cpu", "triton")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def guarded(main: Callable[[], int]) -> int:
    """Run `main`; a user's mistake, a full disk, or a folder that nobody may write to, is said in one line,
    without a traceback."""
    try:
        _check_kernels()
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()  # here and not at the end, where nobody would catch what it raises
        return status
    except UserError as error:
        text = str(error)
        return _say_mistake(text if text.startswith("config error") else f"error: {text}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return NOBODY_READS
    except Exception as error:  # safetensors and torch have errors of their own for a full disk
        refused = _refused_by_the_system(error)
        if refused is None:
            raise
        return _say_mistake(f"error: {refused}")


def _nobody_reads() -> bool:
    """Whether whoever read our output has seen enough, as `head` has; what is left of it is then dropped."""
    if not hasattr(select, "poll"):  # Windows, which has other pipes
        return False
    asked = select.poll()
    asked.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(found & select.POLLERR for _, found in asked.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _say_mistake(line: str) -> int:
    """The first process speaks at once, another one only if it lives on: then the mistake is its alone."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(SECONDS_BEFORE_REPEATING)
        line = f"[rank {rank}] {line}"
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return USER_MISTAKE


def _refused_by_the_system(error: Exception) -> str | None:
    """What a full disk or a missing permission is in a user's words; None for a fault of ours."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or any(sign in str(error) for sign in ("os error 28)", "No space left")):
        return f"disk full: {first}; earlier checkpoints are whole"
    if number in _FORBIDDEN or any(sign in str(error) for sign in ("os error 13)", "os error 30)")):
        where = getattr(error, "filename", None)
        reason = f"{where}: {getattr(error, 'strerror', first)}" if where else first
        return f"{reason}; let us write there, or choose another folder"
    return None


def _check_kernels() -> None:
    """What the first scan would find out, after minutes of loading."""
    forced = os.environ.get(KERNELS, "")
    if forced and forced not in KERNEL_PATHS:
        known = ", ".join(KERNEL_PATHS)
        raise UserError(f"{KERNELS}={forced!r} names no path; write one of {known}, or unset it")


def command_again() -> str | None:
    """The command that started this process, fit to go on with: that of `accelerate launch` where this is
    its child. None where that cannot be seen."""
    words: Sequence[str] = sys.orig_argv
    if any(name.startswith("ACCELERATE_") for name in os.environ) or "TORCHELASTIC_RUN_ID" in os.environ:
        words = _words_of(os.getppid())
        if not any(Path(word).name in ("accelerate", "torchrun") for word in words[:2]):
            return None
    if len(words) > 1 and Path(words[1]).name in ("transmamba", "accelerate", "torchrun"):
        words = [Path(words[1]).name, *words[2:]]  # a script's interpreter goes without saying
    return shlex.join(word for word in words if word != "--overwrite")


def _words_of(process: int) -> list[str]:
    """A process's command line; empty where the system does not tell."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().decode().split("\0")[:-1]
    except (OSError, UnicodeDecodeError):
        return []
