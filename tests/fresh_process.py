"""Programs in fresh processes, as Python runs them: forks of one that has imported what takes long to import.

Nothing of ours is among it, nor timm and open_clip, which must know of us whichever is imported first.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# of each line that it reads, a program in a fork; writes its exit status
_SERVER = """
import contextlib, gc, json, os, sys, traceback
import huggingface_hub, torch, torch.utils.data, torchvision
from transformers import AutoModelForCausalLM, AutoTokenizer, BambaForCausalLM, GenerationMixin
with contextlib.suppress(ImportError):
    import wandb  # timm imports it where it is installed


def run(program, arguments, folder, environment, outputs):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["-c", *arguments]
    try:
        assert not {"timm", "open_clip", "transmamba", "transmamba_kernels"} & sys.modules.keys()
        exec(program, {"__name__": "__main__"})
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return 1 if isinstance(stop.code, str) else int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


gc.freeze()
for line in sys.stdin:
    child = os.fork()
    if not child:
        status = run(**json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Ends with this process, whose end of the pipe it reads."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def run(program: str, *arguments: Any, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Its exit status and what it said; in this process's environment, in `folder` or where this one is."""
    with tempfile.TemporaryDirectory() as place:
        outputs = [Path(place) / name for name in ("stdout", "stderr")]
        asked = dict(program=program, arguments=[*map(str, arguments)], folder=str(folder or Path.cwd()))
        asked |= dict(environment=dict(os.environ), outputs=[*map(str, outputs)])
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        try:
            print(json.dumps(asked), file=server.stdin, flush=True)
            status = int(server.stdout.readline())
        except BaseException:  # such as a test that took too long: the next answer would be another's
            server.kill()
            _server.cache_clear()
            raise
        out, err = (path.read_text() for path in outputs)
    return subprocess.CompletedProcess(program, status, out, err)


def run_script(path: Path, *arguments: Any, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """As `python PATH`."""
    program = (
        f"import runpy, sys\nsys.argv[0] = {str(path)!r}\nsys.path[0] = {str(path.parent)!r}\n"
        f"runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    return run(program, *arguments, folder=folder)
