"""Three small transformers for sentences: token ids `[n, length]`, padded at their end, to logits `[n, k]`.

    Bert:   LN(E_v + P_t + T_0), two-way attention, norms behind each part, the mean over tokens, a linear head
    Gpt:    E_v + P_t, norms in front of each part, attention to earlier tokens, the last token, a linear head
    Llama:  E_v, RMS norms in front, rotary positions, a gated MLP, the last token, a linear head

As language models (`every_place`) the two decoders give logits of the next token at every place, `[n, length, v]`, by a
head of their own without bias, or by the token embedding (`tied`, Press and Wolf 2017, arXiv:1608.05859).

The shapes are those of BERT (Devlin et al. 2018, arXiv:1810.04805), GPT-2 (Radford et al. 2019) and Llama (Touvron et
al. 2023, arXiv:2302.13971) without dropout, and small. The mask is made of the ids: what is the pad id is attended by
nobody.

>>> network = Bert(vocabulary=50, length=8)
>>> network(torch.tensor([[4, 9, 2, 0, 0, 0, 0, 0]])).shape
torch.Size([1, 2])
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Bert", "Gpt", "Llama"]


class Attention(nn.Module):
    """Attention of several heads, with what it is fed projected to queries, keys and values by three layers."""

    def __init__(self, width: int, heads: int, bias: bool = True, rotary: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.heads, self.rotary = heads, rotary

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Inputs `[n, length, width]`, and who may attend to whom, `[n, 1, length, length]`."""
        q, k, v = (
            each(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for each in (self.query, self.key, self.value)
        )
        if self.rotary:
            q, k = _rotated(q), _rotated(k)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return projected


class Bert(nn.Module):
    """An encoder: tokens, positions and one type added and normalized, then layers that see the whole sentence."""

    def __init__(
        self, vocabulary: int = 200, length: int = 32, width: int = 64, layers: int = 3, heads: int = 4,
        num_classes: int = 2, pad: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pad = pad
        self.tokens, self.positions, self.types = (nn.Embedding(many, width) for many in (vocabulary, length, 2))
        self.norm = nn.LayerNorm(width)
        self.attentions = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.mlps = nn.ModuleList(_mlp(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.head = nn.Linear(width, num_classes)
        _small(self)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids `[n, length]` to logits `[n, k]`."""
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        is_token = ids != self.pad
        x = self.norm(self.tokens(ids) + self.positions(places) + self.types(torch.zeros_like(ids)))
        for number, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = self.norms[2 * number](x + attention(x, is_token[:, None, None]))
            x = self.norms[2 * number + 1](x + mlp(x))
        weights = is_token.to(x.dtype)[..., None]
        logits: Tensor = self.head((x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1))
        return logits


class Gpt(nn.Module):
    """A decoder: tokens and positions added, then layers in which a token sees itself and those before it."""

    def __init__(
        self, vocabulary: int = 200, length: int = 32, width: int = 64, layers: int = 4, heads: int = 4,
        num_classes: int = 2, pad: int = 0, every_place: bool = False, tied: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pad, self.every_place, self.tied = pad, every_place or tied, tied
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.attentions = nn.ModuleList(Attention(width, heads) for _ in range(layers))
        self.mlps = nn.ModuleList(_mlp(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.norm: nn.Module = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False) if self.every_place else nn.Linear(width, num_classes)
        if tied:
            self.head.weight = self.tokens.weight
        _small(self)

    def embedded(self, ids: Tensor) -> Tensor:
        """What the first layer is fed, `[n, length, width]`."""
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        added: Tensor = self.tokens(ids) + self.positions(places)
        return added

    def forward(self, ids: Tensor) -> Tensor:
        """Ids `[n, length]` to logits `[n, k]`, or `[n, length, vocabulary]` of a language model."""
        is_token, many = ids != self.pad, ids.shape[1]
        earlier = torch.ones(many, many, dtype=torch.bool, device=ids.device).tril()
        x = self.embedded(ids)
        for number, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * number](x), earlier[None, None])
            x = x + mlp(self.norms[2 * number + 1](x))
        if self.every_place:
            of_next: Tensor = self.head(self.norm(x))
            return of_next
        last = (is_token * torch.arange(many, device=ids.device)).argmax(dim=1)
        logits: Tensor = self.head(self.norm(x[torch.arange(len(ids), device=ids.device), last]))
        return logits


class Llama(Gpt):
    """A decoder without position embeddings: queries and keys are turned by their place; RMS norms, gated MLPs."""

    def __init__(
        self, vocabulary: int = 200, length: int = 32, width: int = 64, layers: int = 4, heads: int = 4,
        num_classes: int = 2, pad: int = 0, every_place: bool = False, tied: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(vocabulary, length, width, layers, heads, num_classes, pad, every_place, tied)
        del self.positions
        self.attentions = nn.ModuleList(Attention(width, heads, bias=False, rotary=True) for _ in range(layers))
        self.mlps = nn.ModuleList(Gated(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(2 * layers))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        _small(self)

    def embedded(self, ids: Tensor) -> Tensor:
        """Tokens alone."""
        embedded: Tensor = self.tokens(ids)
        return embedded


class Gated(nn.Module):
    """An MLP with a gate, `down(silu(gate(x)) * up(x))`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs and outputs `[n, length, width]`."""
        outputs: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return outputs


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


def _rotated(x: Tensor) -> Tensor:
    """Turned by the place, halves paired as in Llama: Su et al. (2021), arXiv:2104.09864, equation 34."""
    half, many = x.shape[-1] // 2, x.shape[-2]
    speeds = 1e4 ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angles = torch.arange(many, device=x.device, dtype=x.dtype)[:, None] * speeds
    cos, sin, first, second = angles.cos(), angles.sin(), x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _small(module: nn.Module) -> None:
    """Embeddings as at the start of a training; a standard deviation of 0.02 in BERT and GPT-2 of width 768."""
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02 * (768 / part.embedding_dim) ** 0.5)
