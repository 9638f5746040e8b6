"""Samples of a tensor as data sets and streams of torch, for every test that takes any."""

from torch.utils.data import Dataset, IterableDataset


class Items(Dataset):
    """Samples of a tensor, or whatever `make` gives for one, paired with a label."""

    def __init__(self, x, make=lambda sample: (sample, 7)):
        self.x = x
        self.make = make

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.make(self.x[i])


class Stream(IterableDataset):
    """The samples of a tensor, from end to end."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)
