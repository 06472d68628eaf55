"""Two sites in FLARE's simulator: each client audits its own update, and the server keeps all for the ledger."""

import argparse
import os
import webbrowser
from pathlib import Path

from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.sim_env import SimEnv
from nvflare_site import LEARNING_RATE, MEAN, STD, Net

from inversefed.cli import main as inversefed
from inversefed.integrations.nvflare import AuditFilter, LedgerFilter, SentFilter

HERE = Path(__file__).resolve().parent
TRAINING = {"lr": LEARNING_RATE, "batch-size": 2, "local-epochs": 1}


def recipe(given: argparse.Namespace, output: Path) -> FedAvgRecipe:
    """The job: FLARE's FedAvg, and four filters that audit it."""
    made = FedAvgRecipe(
        name="audited", model=Net(), min_clients=2, num_rounds=given.rounds, train_script=str(HERE / "client.py")
    )
    known = {"image_shape": [3, 32, 32], "mean": MEAN, "std": STD}
    made.add_client_input_filter(SentFilter(), tasks=["train"])
    made.add_client_output_filter(
        AuditFilter(
            "nvflare_site:Net", **known, training=TRAINING, num_examples=2, truth="nvflare_site:private_of",
            max_leakage=given.max_leakage, seconds=given.seconds, nulls=2, reports=str(output / "clients"),
        ),
        tasks=["train"],
    )  # fmt: skip
    made.add_server_output_filter(SentFilter(), tasks=["train"])
    settings = known | {
        "ledger": str(output / "ledger.db"), "watched": False, "time_budget": given.seconds, "nulls": 2,
    }  # fmt: skip
    kept = LedgerFilter("nvflare", "nvflare_site:Net", settings, training=TRAINING, num_examples=2)
    made.add_server_input_filter(kept, tasks=["train"])
    return made


def main() -> None:
    """Run the job, audit on the server what it kept, and open a client's report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--max-leakage", type=float, default=3.0, help="decibels over the best control")
    options.add_argument("--seconds", type=float, default=10.0, help="for each audit")
    options.add_argument("--output", type=Path, default=Path("runs/nvflare_audit"))
    options.add_argument("--no-open", action="store_true", help="do not open the report in a browser")
    given = options.parse_args()

    output = given.output.absolute()
    paths = [str(HERE), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # the sites run in processes of their own
    recipe(given, output).execute(SimEnv(num_clients=2, workspace_root=str(output / "simulator")))
    inversefed(["watch", "nvflare", "--ledger", str(output / "ledger.db"), "--trust-code", "--nice", "0"])
    inversefed(["results", "nvflare", "--ledger", str(output / "ledger.db")])
    for page in sorted((output / "clients").glob("*/round-*/report.html")):
        print(f"A client's own report: {page}")
    if not given.no_open:
        webbrowser.open(page.as_uri())


if __name__ == "__main__":
    main()
