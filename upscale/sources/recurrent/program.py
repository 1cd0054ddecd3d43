"""What a random recurrent network is made of; __init__.py draws it, its three forms walk it."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Program:
    """The parameters of one call, one program a lane, in the shapes of torch.nn after the lane dimension."""

    embedding: torch.Tensor
    """(L, vocabulary, hidden // 2)"""
    weight_input: torch.Tensor
    """(L, gates * hidden, 2 * (hidden // 2)), multiplied"""
    weight_hidden: torch.Tensor
    """(L, gates * hidden, hidden), multiplied"""
    bias_input: torch.Tensor
    """(L, gates * hidden)"""
    bias_hidden: torch.Tensor
    """(L, gates * hidden)"""
    head_weight: torch.Tensor
    """(L, vocabulary, hidden)"""
    head_bias: torch.Tensor
    """(L, vocabulary)"""
