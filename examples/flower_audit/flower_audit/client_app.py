"""The clients."""

from flower_audit.task import Net, load_data
from flower_audit.task import test as test_net
from flower_audit.task import train as train_net
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def data_of(context):
    """This client's own data."""
    config = context.run_config
    return load_data(context.node_config["partition-id"], config["examples"], config["batch-size"])


@app.train()
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
