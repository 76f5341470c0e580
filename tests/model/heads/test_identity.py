import torch

from cyto_dl.model.heads import IdentityHead


def test_features_are_passed_on():
    features = torch.rand(1, 2, 3, 4)
    assert IdentityHead()(features) is features
    assert IdentityHead().activation is None
    assert IdentityHead("softmax").activation == "softmax"
