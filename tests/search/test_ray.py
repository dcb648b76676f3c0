"""The Ray executor on a real cluster of two nodes on this machine, one of which is lost."""

import json
import logging

import optuna
import pytest
from optuna.trial import TrialState
from small_phase import ByNumber, SmallPhase
from small_search import open_study
from test_controller import expected

from moe_optuna import InputError
from moe_optuna.search._controller import Controller
from moe_optuna.search._lease import Leases
from moe_optuna.search._work import Work

ray = pytest.importorskip("ray", reason="the extra ray is not installed")


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    running = Cluster(initialize_head=True, head_node_args=head)
    yield running
    running.shutdown()


def test_a_node_is_lost_and_no_trial_with_it(cluster, tmp_path):
    from moe_optuna.search._ray import RayExecutor

    second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(tmp_path, sampler=ByNumber(), pruner=optuna.pruners.NopPruner())
    events = []

    def observe(event):
        events.append(event)
        ended = [event for event in events if event.kind == "end"]
        if event.kind == "report" and len(ended) == 3 and cluster.list_all_nodes()[-1] is second:
            cluster.remove_node(second, allow_graceful=False)

    executor = RayExecutor(2, address=cluster.address, module="instant_trials", logs=tmp_path / "logs")
    try:
        controller = Controller(executor, Leases(exclusive=True), observer=observe)
        assert controller.prepare({}) == {"content": "text"}
        log = tmp_path / "log"
        recipe = {"reports": 8, "seconds": 0.05, "log": str(log)}
        controller.run(Work(study, SmallPhase(), 12, recipe, "text", 0, tmp_path / "checkpoints"))
        with pytest.raises(InputError, match=r"--workers: 9, expected 1 to \d: the cluster has 0 GPUs"):
            RayExecutor(9, module="instant_trials", logs=tmp_path)
    finally:
        executor.close(5.0)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 12
    assert [trial.value for trial in study.trials] == pytest.approx([expected(trial) for trial in study.trials])
    assert [event.message for event in events if event.kind == "note" and "node or actor was lost" in event.message]
    steps = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
    assert len(set(steps)) == 96


def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    from moe_optuna.search._ray import RayExecutor

    with pytest.raises(InputError, match=r"--ray-address 127\.0\.0\.1:1: nothing answers there"):
        RayExecutor(1, address="127.0.0.1:1", module="instant_trials", logs=tmp_path)
