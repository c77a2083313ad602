"""A Ray cluster of two nodes with a core each on this one machine: prints its address, kills the second node
with all that runs on it at the first line that it reads, and ends with its standard input."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


def below(process: int) -> list[int]:
    """Children of a process, and theirs."""
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *below(child)]
    return found


def main() -> None:
    """Start, kill, end."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    second = cluster.add_node(**NODE)
    print(cluster.address, flush=True)
    if sys.stdin.readline():
        (raylet, *_) = second.all_processes["raylet"]
        victims = below(raylet.process.pid)
        cluster.remove_node(second, allow_graceful=False)
        for process in victims:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        print("killed", flush=True)
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    main()
