import torch

from cyto_dl.model.heads import ProjectionHead


def test_stacks_of_any_depth_become_one_plane():
    head = ProjectionHead(4, 2)
    for depth in (1, 5):
        assert head(torch.rand(2, 4, depth, 7, 9)).shape == (2, 2, 7, 9)


def test_the_weights_can_choose_the_plane_in_focus_pixel_by_pixel():
    head = ProjectionHead(2, 1)
    features = torch.rand(1, 2, 6, 7, 9)
    sharpness, brightness = 0, 1
    with torch.no_grad():
        head.score.weight.copy_(torch.eye(2)[sharpness].reshape(1, 2, 1, 1, 1) * 1e6)
        head.convolution.weight.zero_()[0, brightness, 1, 1] = 1
        head.convolution.bias.zero_()
    sharpest = features[:, sharpness].argmax(dim=1, keepdim=True)
    expected = features[:, brightness].gather(1, sharpest)
    # two planes would have to be equally sharp to a millionth to be mixed
    assert torch.allclose(head(features), expected, atol=1e-5)


def test_planes_are_weighed_so_that_a_constant_stack_is_its_plane():
    head = ProjectionHead(4, 4)
    plane = torch.rand(1, 4, 1, 7, 9)
    # weights that sum to one in single precision, then 36 multiply-adds
    assert torch.allclose(head(plane), head(plane.expand(-1, -1, 6, -1, -1)), atol=1e-5)
