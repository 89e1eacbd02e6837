"""One of two ranks: a fused model under DDP with checkpointing; rank 0 saves the averaged gradients to argv[1]."""

import sys

import torch
import torch.distributed as dist
from test_fused import adapted, inputs, make_family
from torch.nn.parallel import DistributedDataParallel

from llamafactory.model.fused.passes import fuse_parts


def main(path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = adapted(make_family("llama"))
    fuse_parts(model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    wrapped = DistributedDataParallel(model)
    batch = {name: values[dist.get_rank() :: 2] for name, values in inputs().items()}
    wrapped(**batch, use_cache=False).loss.backward()
    if dist.get_rank() == 0:
        torch.save({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, path)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
