"""`python ray_search.py FOLDER TEMPORARY`: a small search on a Ray cluster of two nodes, one of which is lost.

In a process of its own, which its test ends where it does not end by itself. The cluster's ports are free ones and its
files lie in TEMPORARY, also the one that tells of the cluster, so that it meets no other cluster of this machine.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import optuna
import ray
from ray.cluster_utils import Cluster
from small_phase import ByNumber, SmallPhase
from small_search import open_study

from moe_optuna import InputError
from moe_optuna.search._controller import Controller
from moe_optuna.search._lease import Leases
from moe_optuna.search._ray import RayExecutor
from moe_optuna.search._work import Work


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(folder: Path, temporary: str) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.environ["RAY_TMPDIR"] = temporary
    files = Path(temporary, "ray")
    files.mkdir()  # Cluster writes its address into it, whether or not `temp_dir` is elsewhere
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "temp_dir": str(files)}
    head = node | {"gcs_server_port": free_port(), "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**node)
    ended = 0

    def observe(event: Any) -> None:
        nonlocal ended
        ended += event.kind == "end"
        if event.kind == "report" and ended >= 3 and cluster.list_all_nodes()[-1] is second:
            cluster.remove_node(second, allow_graceful=False)

    executor = RayExecutor(2, address=cluster.address, module="instant_trials", logs=folder / "logs")
    study = open_study(folder, sampler=ByNumber(), pruner=optuna.pruners.NopPruner())
    controller = Controller(executor, Leases(exclusive=True), observer=observe)
    text = controller.prepare({})["content"]
    recipe = {"reports": 8, "seconds": 0.05, "log": str(folder / "log")}
    controller.run(Work(study, SmallPhase(), 12, recipe, text, 0, folder / "checkpoints"))
    try:
        RayExecutor(9, module="instant_trials", logs=folder)
    except InputError as error:
        refusal = str(error)
    executor.close(5.0)
    ray.shutdown()
    print(json.dumps({"nodes": len(cluster.list_all_nodes()), "refusal": refusal}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
