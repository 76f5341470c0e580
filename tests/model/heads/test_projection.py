import torch

from cyto_dl.model.heads import ProjectionHead


def test_stacks_of_any_depth_become_one_plane():
    head = ProjectionHead(4, 2)
    for depth in (1, 5):
        assert head(torch.rand(2, 4, depth, 7, 9)).shape == (2, 2, 7, 9)


def test_planes_are_weighed_so_that_a_constant_stack_is_its_plane():
    head = ProjectionHead(4, 4)
    plane = torch.rand(1, 4, 1, 7, 9)
    # weights that sum to one in single precision, then 36 multiply-adds
    assert torch.allclose(head(plane), head(plane.expand(-1, -1, 6, -1, -1)), atol=1e-5)
