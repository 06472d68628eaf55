"""Clients: what turns a network and a private batch into an update."""

from inversefed.fl.clients.client import Client as Client
from inversefed.fl.clients.dpsgd import DPSGD
from inversefed.fl.clients.fedavg import FedAvg, FedSGD
from inversefed.fl.clients.local_steps import LocalSteps as LocalSteps
from inversefed.fl.clients.partial import Shares
from inversefed.fl.clients.secure_sum import SumOfClients

__all__ = ["DPSGD", "FedAvg", "FedSGD", "Shares", "SumOfClients"]
