"""The clients."""

from flower_dp.task import Net, load_data
from flower_dp.task import test as test_net
from flower_dp.task import train as train_net
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from inversefed.integrations.flower import Policy, audit_mod
from inversefed.types import Batch


def private(context):
    """The pictures and labels that this client trains on, in pixel space."""
    images, labels = data_of(context).dataset.tensors
    return Batch(images * 0.5 + 0.5, labels)


# The audit comes first, so that it sees what leaves: clipped to norm 1, and noised for epsilon 1 in each round.
local_dp = LocalDpMod(clipping_norm=1.0, sensitivity=2.0, epsilon=1.0, delta=1e-5)
policy = Policy(max_leakage=3.0, above="withhold", seconds=20.0, nulls=0)
own = audit_mod(policy, network=Net, mean=0.5, std=0.5, truth=private, attack="geiping(max_iterations=100)")
app = ClientApp()


def data_of(context):
    """This client's own data."""
    config = context.run_config
    return load_data(context.node_config["partition-id"], config["examples"], config["batch-size"])


@app.train(mods=[own, local_dp])  # of this kind of message alone: LocalDpMod answers no other
def train(message: Message, context: Context) -> Message:
    """Train on the client's own data."""
    net, loader = Net(), data_of(context)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    loss = train_net(net, loader, context.run_config["local-epochs"], message.content["config"]["lr"])
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(loader.dataset)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate on the client's own data."""
    net, loader = Net(), data_of(context)
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    loss, accuracy = test_net(net, loader)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(loader.dataset)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
