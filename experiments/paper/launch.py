"""Cluster script of a table: one machine with 8 GPUs per row; finished rows are skipped.

    python -m experiments.paper.launch --table=table_1b --system=slurm --data=… --validation=… --init_weights=… > FILE
    sbatch FILE
    python -m experiments.paper.launch --table=table_1b --system=kubernetes --image=registry/retinanet_tf:3.13 …
    python -m experiments.paper.launch --table=table_1b --system=shell …      (all rows, one after the other)

A row that is killed resumes from its last checkpoint when its task is repeated, which both scripts ask for.
`--collect` of the table's own command gathers the rows at the end.
"""

import importlib
import shlex

from absl import flags

from experiments.paper import study
from retinanet_tf.cli.main import run
from retinanet_tf.errors import InputError

TABLE = flags.DEFINE_enum("table", None, study.STUDIES, "Which study.", required=True)
SYSTEM = flags.DEFINE_enum("system", "slurm", ["slurm", "kubernetes", "shell"], "What starts the jobs.")
IMAGE = flags.DEFINE_string("image", "retinanet_tf:3.13", "Container image, for kubernetes.")
FOLDER = flags.DEFINE_string("folder", "/shared/retinanet", "Folder that all machines share, for --runs and --output.")
VOLUME = flags.DEFINE_string("volume", "shared", "Kubernetes: persistent volume claim mounted there.")

_SLURM = """\
#!/bin/bash
#SBATCH --job-name={table}
#SBATCH --array=0-{last}
#SBATCH --nodes=1 --ntasks=1 --gpus-per-node=8 --cpus-per-task=32
#SBATCH --requeue --signal=B:USR1@120
# One row per array task. SIGTERM saves the state; the requeued task resumes from there. Slurm requeues what it
# preempts; two minutes before the time limit it sends SIGUSR1, and the task requeues itself.
stop() {{ kill %1; wait %1; }}
trap 'stop; exit 143' TERM
trap 'stop; scontrol requeue "$SLURM_JOB_ID"; exit 143' USR1
{command} --rows="$SLURM_ARRAY_TASK_ID" &
wait %1
"""
_KUBERNETES = """\
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  completions: {rows}
  parallelism: {rows}
  completionMode: Indexed
  backoffLimit: {retries}
  template:
    spec:
      restartPolicy: OnFailure
      containers:
      - name: row
        image: {image}
        command: [bash, -c]
        args:
        - >-
          exec {command} --rows="$JOB_COMPLETION_INDEX"
        resources: {{limits: {{nvidia.com/gpu: 8}}}}
        volumeMounts: [{{name: shared, mountPath: {folder}}}]
      volumes:
      - name: shared
        persistentVolumeClaim: {{claimName: {volume}}}
"""
_SHELL = """\
#!/bin/bash
set -euo pipefail
{command}
"""


def script(table: str, system: str, folder: str, data: str, validation: str, init_weights: str, **container) -> str:
    """The text of a script that runs every row of `table` at the paper's scale.

    Args:
      table: a name of study.STUDIES.
      system: 'slurm', 'kubernetes' or 'shell'.
      folder: shared by all machines.
      data: pattern of the training shards.
      validation: pattern of the validation shards.
      init_weights: imported ImageNet weights, with '{backbone}' where the row's backbone belongs.
      **container: `image` and `volume`, for kubernetes.
    """
    rows = len(importlib.import_module(f"experiments.paper.{table}").STUDY.rows)
    paths = {"runs": f"{folder}/runs", "output": f"{folder}/results", "data": data, "validation": validation}
    words = ["python", "-m", f"experiments.paper.{table}", "--scale=paper"]
    words += [f"--{name}={value}" for name, value in {**paths, "init_weights": init_weights}.items()]
    fields = {"table": table, "name": table.replace("_", "-"), "rows": rows, "last": rows - 1, "retries": 10 * rows}
    template = {"slurm": _SLURM, "kubernetes": _KUBERNETES, "shell": _SHELL}[system]
    return template.format(**fields, command=shlex.join(words), folder=folder, **container)


def main() -> None:
    """Prints the script."""
    given = {
        "data": study.DATA.value,
        "validation": study.VALIDATION.value,
        "init_weights": study.INIT_WEIGHTS.value,
    }
    for name, value in given.items():
        if not value:
            raise InputError(f"--{name} is missing: the paper's rows need --data, --validation and --init_weights.")
    print(script(TABLE.value, SYSTEM.value, FOLDER.value, **given, image=IMAGE.value, volume=VOLUME.value), end="")


if __name__ == "__main__":
    run(main)
