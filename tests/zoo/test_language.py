"""The small transformers for sentences: padding changes nothing, and who sees whom."""

import pytest
import torch

from inversefed.zoo.networks.language import Bert, Gpt, Llama

NETWORKS = {"Bert": Bert, "Gpt": Gpt, "Llama": Llama}
SENTENCES = torch.tensor([[4, 9, 2, 7, 0, 0, 0, 0], [5, 5, 8, 0, 0, 0, 0, 0]])


def built(name: str) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name](vocabulary=20, length=8, width=16, num_classes=3)


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_changes_no_logits_and_has_no_gradient(name: str):
    network = built(name)
    logits = network(SENTENCES)
    assert logits.shape == (2, 3)
    assert torch.allclose(network(SENTENCES[:, :4]), logits, atol=1e-6)
    logits[:, 1].sum().backward()
    tokens = network.tokens.weight.grad
    assert tokens.any(dim=1).nonzero().flatten().tolist() == [2, 4, 5, 7, 8, 9]


@pytest.mark.parametrize("name", NETWORKS)
def test_order_matters(name: str):
    network = built(name)
    assert not torch.allclose(network(SENTENCES[:, [1, 0, 2, 3]]), network(SENTENCES[:, :4]), atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_encoder_sees_later_tokens(name: str):
    network, seen = built(name), []
    network.attentions[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    changed = SENTENCES.clone()
    changed[:, 2] = 3
    network(SENTENCES), network(changed)
    assert torch.allclose(seen[0][:, :2], seen[1][:, :2], atol=1e-6) == (name != "Bert")
