"""Network, data and training."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from inversefed.zoo.pictures import photo, photo_names


class Net(nn.Module):
    """The convolutional network of PyTorch's tutorial, for pictures of 3x32x32."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        """Scores of ten classes."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def load_data(partition_id, examples, batch_size):
    """A client's pictures: pieces of one of the photographs that come with scikit-image, its number their class."""
    number = partition_id % len(photo_names())
    large = photo(photo_names()[number], (3, 192, 192))
    pieces = large.unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32)
    data = TensorDataset((pieces[:examples] - 0.5) / 0.5, torch.full((examples,), number))
    return DataLoader(data, batch_size=batch_size, shuffle=True)


def train(net, loader, epochs, lr):
    """Train with SGD, and return the mean loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    losses = []
    net.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def test(net, loader):
    """Mean loss and accuracy."""
    net.eval()
    with torch.no_grad():
        outputs = [(net(images), labels) for images, labels in loader]
    logits, labels = (torch.cat(each) for each in zip(*outputs, strict=True))
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
