"""The server."""

from flower_dp.client_app import local_dp
from flower_dp.task import Net
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from inversefed.integrations.flower import AuditedStrategy  # added

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Federated averaging over some rounds."""
    config = context.run_config
    strategy = FedAvg(fraction_evaluate=config["fraction-evaluate"])
    audit = {"mean": 0.5, "std": 0.5, **{name: config[name] for name in ("attack", "nulls", "nice")}}  # added
    strategy = AuditedStrategy(strategy, network=Net, run_config=config, mods=[local_dp], **audit)  # added
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": config["learning-rate"]}),
        num_rounds=config["num-server-rounds"],
    )
