"""Run as a program: runs cases in several processes at once, forked from one that has imported everything.

Reads one JSON object a line: `case`, a function of `distributed_cases`; `world`, how many processes;
`backend`;
`folder`, where each leaves its answer as `RANK.pkl`; `arguments`. Answers with a JSON list of the exit
codes; a process that takes longer than `patience` seconds is killed.
"""

import faulthandler
import json
import os
import pickle
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

# What the cases import on their way, once for all of them.
import distributed_cases
import pandas  # noqa: F401
import torch
import torch.distributed as dist

import zanalysis.runfile.tables  # noqa: F401


def run(request, rank):
    folder = Path(request["folder"])
    store = dist.FileStore(str(folder / "store"), request["world"])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if request["backend"] == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        request["backend"], store=store, rank=rank, world_size=request["world"], timeout=timedelta(seconds=20)
    )
    try:
        answer = getattr(distributed_cases, request["case"])(folder, **request["arguments"])
    except BaseException as error:
        traceback.print_exc()
        answer = error
    with (folder / f"{rank}.pkl").open("wb") as file:
        pickle.dump(answer, file)
    if not isinstance(answer, BaseException):
        dist.destroy_process_group()


def main():
    faulthandler.enable()
    for line in sys.stdin:
        request = json.loads(line)
        children = []
        for rank in range(request["world"]):
            child = os.fork()
            if child == 0:
                faulthandler.dump_traceback_later(request["patience"] - 2, exit=False)
                try:
                    run(request, rank)
                    sys.stderr.flush()
                finally:
                    os._exit(0)
            children.append(child)
        codes, deadline = {}, time.monotonic() + request["patience"]
        while len(codes) < len(children):
            for child in children:
                if child not in codes:
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        codes[child] = os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                for child in children:
                    if child not in codes:
                        os.kill(child, signal.SIGKILL)
                deadline += 60
            time.sleep(0.005)
        sys.stdout.write(json.dumps([codes[child] for child in children]) + "\n")
        sys.stdout.flush()
    os._exit(0)  # nothing is left to be done, and torch takes seconds to find that out


if __name__ == "__main__":
    main()
