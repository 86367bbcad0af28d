"""Modules of a user's own, each with a corner of a graph that no published model has."""

from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, Any]


class Autoencoder(nn.Module):
    """Two stacks, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def autoencoder(batch: int = 2) -> Made:
    return Autoencoder(), torch.zeros(batch, 32)


class Branches(nn.Module):
    """Tied weights, results of one op that nobody reads, inputs that are results, integers."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.rows.weight
        self.register_buffer("scale", torch.ones(8))
        self.register_buffer("table", torch.arange(64).reshape(8, 8))

    def forward(self, ids: Tensor, x: Tensor, unused: Tensor) -> dict[str, Tensor]:
        seen = self.rows(ids) * self.scale + x
        left, middle, right = seen.chunk(3, 1)
        best, which = torch.topk(left.transpose(0, 1), 2)
        highest = torch.max(middle, 2).values
        counted = ids @ self.table[: ids.shape[1], :4]
        wide = seen.unsqueeze(1).expand(-1, 4, -1, -1)
        mask = torch.ones(seen.shape[1], seen.shape[1]).tril() * self.scale[0]
        scores = torch.softmax(seen @ seen.transpose(1, 2) + mask, -1)
        return {
            "passed": x,
            "logits": self.head(scores @ seen),
            "best": best,
            "which": which,
            "highest": highest + right.sum(),
            "counted": counted,
            "wide": wide.float(),
            "mask": mask,
            "positive": seen > 0,
        }


def branches(batch: int = 2, seq: int = 6) -> Made:
    return Branches(), {
        "ids": torch.zeros(batch, seq, dtype=torch.int64),
        "x": torch.zeros(batch, seq, 8),
        "unused": torch.zeros(3),
    }


class Skips(nn.Module):
    """Convolutions with a connection past them, and an input that is written into."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(8, 4, 2, 2), nn.ConvTranspose2d(8, 3, 2, 2)])
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: Tensor, counter: Tensor) -> Tensor:
        first = torch.relu(self.norm(self.down[0](image)))
        second = torch.relu(self.down[1](first))
        counter += second.mean((1, 2, 3))
        return self.up[1](torch.cat([self.up[0](second), first], 1)) + image


def skips(batch: int = 2) -> Made:
    return Skips().eval(), (torch.zeros(batch, 3, 8, 8), torch.zeros(batch))


class Recurrent(nn.Module):
    """An LSTM of two layers and directions, and a GRU upon it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(8, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.lstm(x)[0])[0]


def recurrent() -> Made:
    return Recurrent(), torch.zeros(2, 5, 6)


class Rotated(nn.Module):
    """Complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        turn = torch.polar(torch.ones(4), torch.arange(4.0))
        turned = torch.view_as_complex(self.linear(x).unflatten(-1, (4, 2))) * turn
        return self.linear(torch.view_as_real(turned).flatten(-2)) + turned.abs().sum()


def rotated(batch: int = 2, seq: int = 4) -> Made:
    return Rotated(), torch.zeros(batch, seq, 8)


class Drawn(nn.Module):
    """A number drawn at random in the run: one draw, which every device must see alike."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(8, 8)
        return self.second(torch.relu(self.first(x) @ noise)) @ noise


def drawn(batch: int = 2) -> Made:
    return Drawn(), torch.zeros(batch, 8)
