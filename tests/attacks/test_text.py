"""Sentences from updates of small transformers: exact where the update is honest, and never where it is not."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

import inversefed
from inversefed import Budget, FedAvg, FedSGD, Observation, Status, ThreatModel, freeze, recipes
from inversefed.attacks.exact.text.attention_parts import Projection, attention_parts
from inversefed.attacks.exact.text.embedding_rows import sentence_of_rows
from inversefed.attacks.exact.text.one_sentence import pursued
from inversefed.attacks.exact.text.outcome import result
from inversefed.attacks.exact.text.roles import TextRoles, layer_inputs, read_roles
from inversefed.attacks.exact.text.span import placed_tokens, span_of
from inversefed.attacks.labels import granted_or_recovered_labels
from inversefed.controls.null_update import null_observation
from inversefed.errors import ConfigError, InputError, InversefedError, ThreatModelError, UnsupportedNetworkError
from inversefed.fl.losses import NextToken
from inversefed.inputs import Tokens
from inversefed.networks.lora import low_rank
from inversefed.zoo.networks.language import Bert, Gpt, Llama

SPACE = Tokens(length=12, vocabulary=2000)
NETWORKS = {"Bert": Bert, "Gpt": Gpt, "Llama": Llama}


def built(name: str, seed: int = 0, **settings: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[name](vocabulary=2000, length=12, num_classes=3, **settings).eval()


def sentences(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = Generator().manual_seed(seed)
    return SPACE.stand_ins(count, random), torch.randint(3, (count,), generator=random)


def observed(module: nn.Module, ids: Tensor, labels: Tensor) -> Observation:
    network = freeze(module, SPACE)
    return Observation(network, FedSGD(), FedSGD()(network, ids, labels), len(ids))


def attacked(attack: object, observation: Observation) -> inversefed.Reconstruction:
    return attack(observation, Generator().manual_seed(0))


def as_set(ids: Tensor, labels: Tensor) -> set[tuple[int, ...]]:
    return {(int(label), *row.tolist()) for row, label in zip(ids, labels, strict=True)}


@pytest.mark.parametrize("name", ["Bert", "Gpt"])
@pytest.mark.parametrize("seed", range(3))
def test_one_sentence_is_read_off_the_embeddings_gradients(name: str, seed: int):
    ids, labels = sentences(1, seed)
    found = attacked(recipes.embedding_rows(), observed(built(name, seed), ids, labels))
    assert found.proven and torch.equal(found.images, ids) and torch.equal(found.labels, labels)
    assert found.findings[0].evidence["off_whole_numbers"] < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_one_sentence_is_found_with_frozen_embeddings(name: str):
    ids, labels = sentences(1, 5)
    module = built(name)
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            part.requires_grad_(False)
    observation = observed(module, ids, labels)
    with pytest.raises(ThreatModelError, match=r"positions|frozen"):
        attacked(recipes.embedding_rows(), observation)
    found = attacked(recipes.token_span(), observation)
    assert found.proven and torch.equal(found.images, ids)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [2, 4])
def test_several_sentences_are_found_with_their_labels(name: str, count: int):
    ids, labels = sentences(count, 1)
    found = attacked(recipes.token_span(), observed(built(name, width=128), ids, labels))
    assert found.proven and as_set(found.images, found.labels) == as_set(ids, labels)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tolerance_from_the_spectrum_parts_true_inputs_from_others(name: str):
    ids, labels = sentences(2, 2)
    observation = observed(built(name, width=128), ids, labels)
    roles = read_roles(observation.network, SPACE)
    for weights in (roles.first, roles.second):
        span = span_of(observation, weights)
        true = layer_inputs(observation.network, weights[0], ids)[ids != 0]
        assert bool(span.holds(true).all())
        assert float((span.distances(true) / span.expected(true)).max()) < 1
        random = torch.randn(50, true.shape[1], generator=Generator().manual_seed(1))
        assert not bool(span.holds(random).any())


def test_roles_are_read_off_whatever_the_names():
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = built("Bert")
            self.inner.a = self.inner.attentions
            del self.inner.attentions
            self.inner.__class__ = type("Other", (Bert,), {"attentions": property(lambda own: own.a)})

        def forward(self, ids: Tensor) -> Tensor:
            return self.inner(ids)

    network = freeze(Strange(), SPACE)
    roles = read_roles(network, SPACE)
    names = tuple(tuple(f"inner.a.{layer}.{part}.weight" for part in ("query", "key", "value")) for layer in (0, 1))
    assert roles == TextRoles("inner.tokens.weight", "inner.positions.weight", *names, causal=False)
    parts = attention_parts(network, roles, SPACE)
    assert tuple(each.weight for each in (parts.query, parts.key, parts.value)) == names[0] and parts.heads == 4


class Fused(nn.Module):
    """Positions as a parameter, and attentions of torch, whose queries, keys and values are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(2000, 64), nn.Parameter(0.1 * torch.randn(1, 12, 64))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 3)
        self.layers = nn.ModuleList(nn.MultiheadAttention(64, 4, batch_first=True) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        pad = ids == 0
        x = self.norm(self.words(ids) + self.places[:, : ids.shape[1]])
        for layer in self.layers:
            x = x + layer(x, x, x, key_padding_mask=pad, need_weights=False)[0]
        return self.head((x * ~pad[..., None]).sum(dim=1) / (~pad).sum(dim=1, keepdim=True))


def test_a_stranger_s_transformer_with_fused_projections_is_read():
    ids, labels = sentences(1, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        observation = observed(Fused().train(), ids, labels)
    roles = read_roles(observation.network, SPACE)
    layers = tuple((f"layers.{layer}.in_proj_weight",) for layer in (0, 1))
    assert roles == TextRoles("words.weight", "places", *layers, causal=False)
    for attack in (recipes.embedding_rows(), recipes.token_span()):
        found = attacked(attack, observation)
        assert found.proven and torch.equal(found.images, ids)


def test_roles_that_are_given_are_taken_and_wrong_names_refused():
    ids, labels = sentences(1)
    observation = observed(built("Gpt"), ids, labels)
    roles = read_roles(observation.network, SPACE)
    assert roles.causal and attacked(recipes.token_span(roles), observation).proven
    with pytest.raises(UnsupportedNetworkError, match=r"no weights named wte\.weight"):
        attacked(recipes.token_span(replace(roles, tokens="wte.weight")), observation)


class Bare(nn.Module):
    """An encoder whose embedding is a bare table, and whose attentions have queries apart, keys and values in one."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.table, self.where = nn.Parameter(0.1 * torch.randn(2000, width)), nn.Parameter(torch.randn(12, width))
        self.asks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.holds = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(3))
        self.norm, self.says = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        is_token = ids != 0
        x = self.norm(nn.functional.embedding(ids, self.table) + 0.1 * self.where[: ids.shape[1]])
        for ask, hold in zip(self.asks, self.holds, strict=True):
            key, value = hold(x).chunk(2, dim=-1)
            x = x + nn.functional.scaled_dot_product_attention(ask(x), key, value, attn_mask=is_token[:, None])
        return self.says((x * is_token[..., None]).sum(dim=1) / is_token.sum(dim=1, keepdim=True))


BARE = TextRoles("table", first=("asks.0.weight", "holds.0.weight"), second=("asks.1.weight", "holds.1.weight"))


def bare() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Bare().eval()


def test_a_mapping_names_what_a_run_does_not_tell_and_the_rest_is_read():
    ids, labels = sentences(1, 2)
    observation = observed(bare(), ids, labels)
    with pytest.raises(UnsupportedNetworkError, match=r"no embedding is fed.*TextRoles\(tokens"):
        attacked(recipes.embedding_rows(), observation)
    with pytest.raises(UnsupportedNetworkError, match=r"no three linear layers.*TextRoles\("):
        attacked(recipes.token_span(), observation)
    assert read_roles(observation.network, SPACE) == TextRoles(positions="where", causal=False)
    assert read_roles(observation.network, SPACE, BARE) == replace(BARE, positions="where", causal=False)
    for attack in (recipes.embedding_rows(TextRoles("table")), recipes.token_span(BARE)):
        found = attacked(attack, observation)
        assert found.proven and torch.equal(found.images, ids)


@pytest.mark.parametrize("stranger", [Bare, Fused])
def test_several_sentences_of_an_encoder_with_shared_projections(stranger: type[nn.Module]):
    ids, labels = sentences(2, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        observation = observed(stranger().eval(), ids, labels)
    roles = read_roles(observation.network, SPACE, BARE if stranger is Bare else TextRoles())
    parts, width = attention_parts(observation.network, roles, SPACE), 64
    names = ("asks.0.weight", "holds.0.weight") if stranger is Bare else ("layers.0.in_proj_weight",)
    shared = [Projection(names[-1], slice(at, at + width)) for at in range(0, 3 * width, width)]
    if stranger is Bare:
        shared = [Projection(names[0], slice(0, width)), *shared[:2]]
    assert [parts.query, parts.key, parts.value] == shared and parts.heads == (1 if stranger is Bare else 4)
    found = attacked(recipes.token_span(roles), observation)
    assert found.proven and as_set(found.images, found.labels) == as_set(ids, labels)


def test_projections_in_turns_of_heads_are_refused():
    class Turns(Bare):
        def __init__(self) -> None:
            super().__init__()
            self.all = nn.ModuleList(nn.Linear(64, 192) for _ in range(2))

        def forward(self, ids: Tensor) -> Tensor:
            x = self.norm(nn.functional.embedding(ids, self.table) + 0.1 * self.where[: ids.shape[1]])
            for layer in self.all:
                parts = layer(x).unflatten(-1, (4, 3, 16)).transpose(1, 2)
                mixed = nn.functional.scaled_dot_product_attention(*parts.unbind(dim=3))
                x = x + mixed.transpose(1, 2).flatten(2)
            return self.says(x.mean(dim=1))

    network = freeze(Turns().eval(), SPACE)
    roles = TextRoles("table", first=("all.0.weight",), second=("all.1.weight",), causal=False)
    with pytest.raises(UnsupportedNetworkError, match="each in rows of its own"):
        attention_parts(network, roles, SPACE)


def test_what_a_run_tells_is_overridden_by_a_mapping():
    network = freeze(built("Gpt"), SPACE)
    read = read_roles(network, SPACE)
    third = tuple(name.replace(".1.", ".2.") for name in read.second)
    given = TextRoles(positions="", second=third, causal=False)
    assert read.causal and read_roles(network, SPACE, given) == replace(
        given, tokens=read.tokens, positions=None, first=read.first
    )


def test_a_network_of_pictures_is_refused():
    network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2))
    update = FedSGD()(network, torch.rand(1, 3, 2, 2), torch.tensor([1]))
    for attack in (recipes.embedding_rows(), recipes.token_span()):
        with pytest.raises(UnsupportedNetworkError, match="token ids"):
            attacked(attack, Observation(network, FedSGD(), update, 1))


def test_more_tokens_than_the_attention_is_wide_are_refused_by_name():
    ids, labels = sentences(4)
    with pytest.raises(ThreatModelError, match=r"tells no token|fill all"):
        attacked(recipes.token_span(), observed(built("Bert", width=16), ids, labels))


def test_sentences_of_no_embeddings_and_no_attention_are_refused_by_what_is_missing():
    ids, labels = sentences(1)
    module = built("Bert").requires_grad_(False)
    module.head.requires_grad_(True)
    with pytest.raises(ThreatModelError, match=r"frozen.*not sent"):
        attacked(recipes.best(), observed(module, ids, labels))


def test_rows_tell_repeated_tokens():
    places = torch.randn(6, 16, generator=Generator().manual_seed(0))
    sentence = (3, 1, 3, 3, 0, 1)
    rows = torch.zeros(5, 16).index_add(0, torch.tensor(sentence), places)
    assert sentence_of_rows(rows, places)[0] == sentence


def no_null_is_exact(observation: Observation, count: int) -> None:
    for seed in range(count):
        null = null_observation(observation, Generator().manual_seed(seed))
        try:
            assert not attacked(recipes.best(), null).proven
        except InversefedError:
            continue


@pytest.mark.parametrize("name", ["Bert", "Gpt", pytest.param("Llama", marks=pytest.mark.slow)])
def test_no_null_update_is_exact(name: str):
    ids, labels = sentences(1)
    observation = observed(built(name), ids, labels)
    no_null_is_exact(observation, 10)


@pytest.mark.parametrize(("name", "count"), [("Bert", 1), ("Gpt", 1), ("Gpt", 2), ("Llama", 3)])
def test_an_audit_of_sentences_says_exact(name: str, count: int):
    ids, labels = sentences(count, 3)
    report = inversefed.audit(built(name, width=128), ids, labels, inputs=SPACE)
    assert report.reconstruction.proven and report.verdict.figures.exact
    assert bool((report.scores["exact_sentences"] == 1).all()) and bool((report.scores["label_accuracy"] == 1).all())


@pytest.mark.parametrize("name", NETWORKS)
def test_adapters_of_enough_rank_give_the_sentence_and_fresh_ones_nothing(name: str):
    ids, labels = sentences(1, 3)
    trained = low_rank(built(name, width=128), 8, ("*query", "*key", "*value"), trained=0.02)
    found = attacked(recipes.token_span(), observed(trained, ids, labels))
    assert found.proven and torch.equal(found.images, ids)
    fresh = low_rank(built(name, width=128), 8, ("*query", "*key", "*value"))
    with pytest.raises(ThreatModelError, match="fresh low-rank adapters"):
        attacked(recipes.token_span(), observed(fresh, ids, labels))


def test_a_batch_with_more_pairs_in_the_span_than_it_has_dimensions_says_so():
    ids = SPACE.ids([[5, 9, 7, 3], [9, 5, 8, 4], [5, 9, 2, 6]])
    found = attacked(recipes.token_span(), observed(built("Gpt", width=128), ids, torch.tensor([0, 1, 2])))
    finding = next(each for each in found.findings if each.code == "mixed-examples")
    assert finding.evidence["beyond"] == finding.evidence["pairs"] - finding.evidence["rank"] > 0
    assert found.proven and torch.equal(found.images.sort(dim=0).values, ids.sort(dim=0).values)


def test_a_budget_ends_the_search_and_what_was_found_is_kept():
    ids, labels = sentences(4, 1)
    observation = observed(built("Bert", width=128), ids, labels)
    with pytest.raises(ThreatModelError, match="no time"):
        recipes.token_span()(observation, Generator(), Budget(seconds=1e-3))
    found = recipes.token_span()(observation, Generator(), Budget(seconds=1.0))
    assert found.images.shape == ids.shape and found.status in (Status.STOPPED, Status.FINISHED)


def test_a_sentence_with_one_token_changed_is_never_exact():
    ids, labels = sentences(2, 6)
    observation = observed(built("Gpt"), ids, labels)
    changed = [row[row != 0].tolist() for row in ids]
    assert result(recipes.token_span(), observation, changed, "nothing was changed", {}).proven
    changed[0][1] = changed[0][1] % 1999 + 1
    assert not result(recipes.token_span(), observation, changed, "one token is another", {}).proven


def test_places_are_not_more_than_the_span_has_dimensions():
    ids, labels = sentences(1, 4)
    observation = observed(built("Bert"), ids, labels)
    roles = read_roles(observation.network, SPACE)
    placed = placed_tokens(observation.network, SPACE, span_of(observation, roles.first), roles.first[0])
    assert [column.tolist() for column in placed] == [[each] for each in ids[0].tolist() if each]


def language_model(name: str, seed: int = 0, tied: bool = False, **settings: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[name](vocabulary=2000, length=12, every_place=True, tied=tied, **settings).eval()


def observed_text(module: nn.Module, ids: Tensor) -> Observation:
    network = freeze(module, SPACE, loss=NextToken(SPACE.pad))
    return Observation(network, FedSGD(), FedSGD()(network, ids, ids), len(ids))


@pytest.mark.parametrize("name", ["Gpt", "Llama"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_sentences_of_a_language_model_are_found_with_their_last_tokens(name: str, tied: bool, count: int):
    ids, _ = sentences(count, 2)
    found = attacked(recipes.best(), observed_text(language_model(name, tied=tied, width=128), ids))
    assert found.proven and torch.equal(found.labels, found.images)
    assert {tuple(row) for row in found.images.tolist()} == {tuple(row) for row in ids.tolist()}


def test_a_tied_embedding_has_rows_for_every_token_and_says_so():
    ids, _ = sentences(1)
    observation = observed_text(language_model("Gpt", tied=True), ids)
    assert int(observation.gradient["tokens.weight"].any(dim=1).sum()) == 2000
    with pytest.raises(ThreatModelError, match=r"tied to head\.weight.*every token.*token_span"):
        attacked(recipes.embedding_rows(), observation)


def test_a_last_token_is_ranked_by_the_whole_update_where_the_output_is_frozen():
    ids, _ = sentences(1, 4)
    module = language_model("Llama", width=128)
    for part in (module.head, module.tokens):
        part.requires_grad_(False)
    found = attacked(recipes.token_span(), observed_text(module, ids))
    assert torch.equal(found.images, ids) and found.proven


def test_a_sentence_of_a_language_model_with_another_last_token_is_never_exact():
    ids, _ = sentences(1, 1)
    observation = observed_text(language_model("Gpt"), ids)
    right = ids[0][ids[0] != 0].tolist()
    assert result(recipes.token_span(), observation, [right], "nothing was changed", {}).proven
    wrong = [*right[:-1], right[-1] % 1999 + 1]
    assert not result(recipes.token_span(), observation, [wrong], "the last token is another", {}).proven


def test_no_null_update_of_a_language_model_is_exact():
    ids, _ = sentences(1)
    observation = observed_text(language_model("Llama", tied=True), ids)
    no_null_is_exact(observation, 5)


def test_labels_of_a_language_model_are_its_sentences_and_logits_those_of_every_place():
    ids, labels = sentences(2)
    with pytest.raises(InputError, match="sentences themselves"):
        inversefed.audit(language_model("Gpt"), ids, labels, inputs=SPACE, loss=NextToken())
    with pytest.raises(UnsupportedNetworkError, match=r"every place.*NextToken"):
        freeze(language_model("Gpt"), SPACE)
    with pytest.raises(UnsupportedNetworkError, match="one a token of the vocabulary"):
        freeze(built("Gpt"), SPACE, loss=NextToken())


class Smoothed(nn.Module):
    """A stranger's loss of the next token: smoothed, and with a number of its own."""

    labels_are_inputs = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(2000))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        outputs, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total = nn.functional.cross_entropy(
            outputs, targets, self.weight, ignore_index=0, label_smoothing=0.1, reduction="sum"
        )
        return total / (targets != 0).sum()


class Own(nn.Module):
    """A stranger's loss of each place's own token, as autoencoders have it: the last one has a gradient too."""

    labels_are_inputs = True

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0)


@pytest.mark.parametrize("loss", [Smoothed(), Own()])
@pytest.mark.parametrize("count", [1, 2])
def test_sentences_under_a_stranger_s_loss_whose_labels_they_are(loss: nn.Module, count: int):
    ids, labels = sentences(count, 2)
    module = language_model("Gpt", width=128)
    report = inversefed.audit(module, ids, ids, inputs=SPACE, loss=loss, nulls=2)
    assert report.verdict.figures.exact and bool((report.scores["exact_sentences"] == 1).all())
    assert bool((report.scores["label_accuracy"] == 1).all())
    with pytest.raises(InputError, match="sentences themselves"):
        inversefed.audit(module, ids, labels, inputs=SPACE, loss=loss)
    with pytest.raises(ConfigError, match="sentences themselves"):
        inversefed.audit(module, ids, ids, inputs=SPACE, loss=loss, threat=ThreatModel(labels="known"))


def test_a_stranger_s_loss_of_places_takes_the_number_format_of_the_network():
    network = freeze(language_model("Gpt"), SPACE, loss=Smoothed())
    ids, _ = sentences(1)
    assert network.to(torch.float64).loss(network.to(torch.float64).features(ids), ids).dtype == torch.float64


def test_an_audit_of_a_language_model_with_public_sentences():
    ids, _ = sentences(2, 3)
    others, _ = sentences(8, 9)
    public = inversefed.Batch(others, others)
    report = inversefed.audit(language_model("Gpt", width=128), ids, ids, inputs=SPACE, loss=NextToken(), others=public)
    assert report.verdict.figures.exact and bool((report.scores["exact_sentences"] == 1).all())
    assert bool((report.scores["label_accuracy"] == 1).all())


def without_embeddings(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            part.requires_grad_(False)
    return module


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_an_update_in_16_bits_gives_the_sentence_without_calling_it_exact(name: str, kind: torch.dtype):
    ids, labels = sentences(1, 2)
    observation = observed(without_embeddings(built(name, width=128)), ids, labels)
    rounded = {each: part.to(kind).to(part.dtype) for each, part in observation.update.items()}
    found = attacked(recipes.token_span(), replace(observation, update=rounded))
    assert torch.equal(found.images, ids) and not found.proven


@pytest.mark.parametrize("name", ["Bert", "Gpt"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_network_of_16_bits_gives_the_sentence_exactly(name: str, kind: torch.dtype):
    ids, labels = sentences(1, 2)
    found = attacked(recipes.best(), observed(built(name, width=128).to(kind), ids, labels))
    assert torch.equal(found.images, ids) and found.proven


@pytest.mark.parametrize("name", NETWORKS)
def test_five_local_steps_of_one_sentence_are_undone(name: str):
    ids, labels = sentences(1, 2)
    network, client = freeze(built(name, width=128), SPACE), FedAvg(local_steps=5, lr=1e-3)
    found = attacked(recipes.best(), Observation(network, client, client(network, ids, labels), 1))
    assert torch.equal(found.images, ids) and found.proven


@pytest.mark.parametrize("name", ["Bert", "Gpt"])
@pytest.mark.parametrize("seed", range(2))
def test_adapters_with_less_ranks_than_tokens_give_the_sentence(name: str, seed: int):
    space = Tokens(length=24, vocabulary=2000)
    ids = space.ids([torch.randint(1, 2000, (18,), generator=Generator().manual_seed(seed)).tolist()])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = NETWORKS[name](vocabulary=2000, length=24, width=128, num_classes=3).eval()
    network = freeze(low_rank(module, 8, ("*query", "*value"), trained=0.02), space)
    observation = Observation(network, FedSGD(), FedSGD()(network, ids, torch.tensor([1])), 1)
    found = attacked(recipes.token_span(), observation)
    assert found.proven and torch.equal(found.images, ids)
    null = null_observation(observation, Generator().manual_seed(seed))
    assert not attacked(recipes.token_span(), null).proven


def test_directions_in_the_span_of_more_atoms_are_pursued():
    random = Generator().manual_seed(3)
    atoms, places = torch.randn(600, 64, generator=random).double(), torch.arange(600) % 12
    true = torch.arange(12) * 13
    mixed = torch.randn(10, 12, generator=random).double() @ atoms[true]
    directions = torch.linalg.qr(mixed.T)[0].T
    assert sorted(next(pursued(atoms, places, directions, torch.zeros(10)))) == true.tolist()
    nothing = torch.linalg.qr(torch.randn(64, 10, generator=random).double())[0].T
    assert not list(pursued(atoms, places, nothing, torch.zeros(10)))


def test_no_rule_looks_for_labels_that_are_the_sentences() -> None:
    ids, _ = sentences(1)
    with pytest.raises(ThreatModelError, match=r"sentences themselves.*token_span"):
        granted_or_recovered_labels(observed_text(language_model("Gpt"), ids))


def test_sentences_are_not_handed_over_as_labels() -> None:
    space, module = Tokens(6, 40), Gpt(vocabulary=40, length=6, num_classes=2, every_place=True).eval()
    ids, loss = space.ids([[7, 21, 30]]), NextToken(pad=0)
    with pytest.raises(ConfigError, match="sentences themselves"):
        inversefed.audit(module, ids, ids, inputs=space, loss=loss, threat=ThreatModel(labels="known"), nulls=0)
