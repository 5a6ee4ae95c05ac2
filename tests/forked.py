"""The project's commands in one process that has imported TensorFlow, each in a fork of its own.

A command spends five seconds on importing TensorFlow; in a fork of a process that has, it begins at once, with fresh
flags and a fresh runtime. `python -m tests.forked` reads requests from stdin; `Forked` is its other end.
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Forked:
    """`run` and `flags` of commands; a context manager."""

    def __enter__(self):
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "tests.forked"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def run(self, module, arguments, folder=ROOT, environment=None):
        """(exit status, everything it printed) of `retinanet MODULE ARGUMENTS` or `python -m MODULE ARGUMENTS`."""
        settings = {"folder": str(folder), "environment": environment or {}}
        return self._ask(module=module, arguments=list(arguments), run=True, **settings)

    def flags(self, module, arguments=(), folder=ROOT):
        """(0, the names of its flags, one a line) if the arguments parse; else (1 or 2, why not). Nothing is run.

        With status 2 the arguments are right and one that must be there isn't; the names are there too.
        """
        return self._ask(module=module, arguments=list(arguments), run=False, folder=str(folder), environment={})

    def _ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))


def _child(request, output):
    """Becomes the command; never returns."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    module, arguments = request["module"], request["arguments"]
    if not module.startswith("experiments."):
        module, arguments = "retinanet_tf", [module, *arguments]
    sys.argv = [module, *arguments]
    status = 1
    try:
        if not request["run"]:
            _parse_only()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _parse_only():
    """In place of running a command, absl parses its flags and lists them."""
    from absl import app, flags

    def parse(*_, **__):
        print("\n".join(flags.FLAGS))
        try:
            rest = flags.FLAGS(sys.argv)[1:]
        except flags.IllegalFlagValueError as error:
            print(error)
            sys.exit(2)
        assert not rest, f"not flags: {rest}"

    app.run = parse


def main() -> None:
    """Answers until stdin ends."""
    import tensorflow as tf

    import retinanet_tf as rn
    from retinanet_tf.inference import predict
    from retinanet_tf.pretrained import importing

    names = [(module, name) for module in (rn, rn.data, rn.pretrained) for name in module.__all__]
    assert tf and predict and importing and all(getattr(module, name) for module, name in names)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as output:
            child = os.fork() or _child(json.loads(line), output.fileno())
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            output.seek(0)
            print(json.dumps([status, output.read().decode(errors="replace")]), flush=True)


if __name__ == "__main__":
    main()
