"""A site's training: one local step on all of its pictures."""

import nvflare.client as flare
import torch
from nvflare_site import LEARNING_RATE, MEAN, STD, Net, private


def main() -> None:
    """Train as long as the server asks for it."""
    flare.init()
    batch = private(flare.get_site_name())
    while flare.is_running():
        received = flare.receive()
        module = Net()
        module.load_state_dict(received.params)
        optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
        torch.nn.functional.cross_entropy(module((batch.images - MEAN) / STD), batch.labels).backward()
        optimizer.step()
        flare.send(flare.FLModel(params_type=flare.ParamsType.FULL, params=module.state_dict()))


if __name__ == "__main__":
    main()
