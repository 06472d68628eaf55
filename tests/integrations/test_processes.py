"""Two processes that train together: their examples count together, in one update."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import torch
from torch import nn
from torch.nn.functional import cross_entropy
import inversefed

rank, meeting = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
torch.manual_seed(0)
layers = nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 4)
model = nn.parallel.DistributedDataParallel(nn.Sequential(*layers))
images, labels = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
with inversefed.capture(model, optimizer) as update:
    for step in range(2):
        optimizer.zero_grad()
        these = slice(4 * step + 2 * rank, 4 * step + 2 * rank + 2)
        cross_entropy(model(images[these]), labels[these]).backward()
        optimizer.step()
if rank == 0:
    print(json.dumps([update.metadata.given(), dict(update.check(images, labels).evidence)]))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_the_gradients_of_two_processes_are_one_update(tmp_path: Path) -> None:
    """BatchNorm normalizes in each process by itself, as it does in micro-batches."""
    settings = {
        "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    }  # fmt: skip
    commands = [[sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / "meeting")] for rank in range(2)]
    processes = [subprocess.Popen(command, **settings) for command in commands]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    told, evidence = json.loads(outputs[0][0])
    assert (told["num_examples"], told["batch_size"], told["micro_batch_size"]) == (8, 4, 2)
    assert evidence["cosine"] == pytest.approx(1, abs=1e-4) and evidence["scale"] == pytest.approx(1, abs=1e-3)
