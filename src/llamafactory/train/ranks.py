"""The end of a run with several processes."""

import gc
import time

import torch.distributed as dist


GLOO_PAUSE = 0.2  # seconds


def leave_ranks() -> None:
    """Take this process out of its group, if it is in one.

    gloo's own thread needs Python's lock to drop the tensors of the last collective, and the group's destructor waits
    for that thread while holding the lock: a process that ends right after a collective can hang for ever (torch
    2.13). So the group's last owners (DDP's reducer) go first, and a pause lets the thread finish.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    gc.collect()
    if "gloo" in str(dist.get_backend()):
        time.sleep(GLOO_PAUSE)
    dist.destroy_process_group()
