"""A Ray cluster of several nodes on this machine; a worker's process and a whole node die in mid-trial.

Run as a program: URL of the database, then the file for what came out. Prints what it does.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from faults import ARGUMENTS, numbers, running
from ray.cluster_utils import Cluster

from normwise.errors import InputError
from normwise.study import RayCluster, compare
from normwise.study.server import Server


def main(url: str, target: str) -> None:
    Server.grace = 12  # this process looks for the dead; the workers beat every 5 s
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    said = {}
    try:
        compare(engine=RayCluster(2, cluster.address), progress=False, **ARGUMENTS)
    except InputError as error:
        refused = str(error)

    def strike() -> None:
        """Kill the first worker that trains, then the node of a later one."""
        first = running(url)
        os.kill(first["process"], signal.SIGKILL)
        said["worker"] = first["trial"]
        second = running(url, besides=[first])
        # A worker's process is its node's child.
        parent = int(Path(f"/proc/{second['process']}/stat").read_text().rpartition(")")[2].split()[1])
        node = next(n for n in nodes if n.all_processes["raylet"][0].process.pid == parent)
        cluster.remove_node(node, allow_graceful=False)
        said["node"] = second["trial"]

    thread = threading.Thread(target=strike)
    thread.start()
    study = compare(storage=url, engine=RayCluster(2, cluster.address, gpus=1), progress=False, **ARGUMENTS)
    thread.join()
    cluster.shutdown()
    with open(target, "w") as file:
        json.dump({"numbers": numbers(study.record), "said": said, "refused": refused}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
