"""Several processes that know of each other, as torchrun starts them, but forked: nothing is imported anew."""

import json
import multiprocessing
import os
import socket

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["diffit_lib.training.train", "sklearn.datasets", "sklearn.model_selection", "torch._dynamo", "torch.nn.parallel"]
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def enter(variables, work, arguments, answer):
    """What each process does: `work(*arguments)`, its result written as JSON."""
    os.environ |= {name: str(value) for name, value in variables.items()}
    multiprocessing.set_start_method("fork", force=True)  # for the workers, as everywhere else
    os.setpgrp()
    result = work(*arguments)
    with open(answer, "w") as file:
        json.dump(result, file)


def together(folder, work, *arguments, world=2):
    """The results of `work` in so many processes, by rank, or None where one has none; and their exit statuses."""
    port, processes, answers = free_port(), [], []
    for rank in range(world):
        variables = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        answers.append(folder / f"answer-{port}-{rank}.json")
        processes.append(FORKSERVER.Process(target=enter, args=(variables, work, arguments, answers[-1])))
        processes[-1].start()
    for process in processes:
        process.join(300)
    results = [json.loads(path.read_text()) if path.is_file() else None for path in answers]
    return results, [process.exitcode for process in processes]
