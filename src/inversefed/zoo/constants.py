"""Means and standard deviations of the data sets' pixels in [0, 1], one number a channel, all digits of 2020 kept."""

__all__ = [
    "cifar10_mean",
    "cifar10_std",
    "cifar100_mean",
    "cifar100_std",
    "fashion_mnist_mean",
    "fashion_mnist_std",
    "imagenet_mean",
    "imagenet_std",
    "mnist_mean",
    "mnist_std",
]

cifar10_mean = (0.4914672374725342, 0.4822617471218109, 0.4467701315879822)
cifar10_std = (0.24703224003314972, 0.24348513782024384, 0.26158785820007324)
cifar100_mean = (0.5071598291397095, 0.4866936206817627, 0.44120192527770996)
cifar100_std = (0.2673342823982239, 0.2564384639263153, 0.2761504650115967)
mnist_mean = (0.13066373765468597,)
mnist_std = (0.30810782313346863,)
fashion_mnist_mean = (0.2860405969887955,)
fashion_mnist_std = (0.3530242445149223,)
imagenet_mean = (0.485, 0.456, 0.406)
imagenet_std = (0.229, 0.224, 0.225)
